"""The head's fit against another solver, and when time runs out."""

import pytest
import torch
from torch import nn

from fedmitr_app.config.schema import LOSSES
from fedmitr_app.training.head import DECAY, fit_head, shard_features
from fedmitr_app.training.losses import client_loss
from tests.helpers.shards import problem, shard_of, tiny_vit


@pytest.mark.parametrize("kind", LOSSES)
def test_the_fit_reaches_the_minimum_that_another_solver_finds(kind):
    features, labels = problem()
    loss = client_loss(kind, torch.bincount(labels, minlength=4), balance=1.0)

    def value(weight: torch.Tensor) -> torch.Tensor:
        logits = features @ weight[:, :5].T + weight[:, 5]
        return loss(logits, labels) + DECAY / 2 * weight[:, :5].square().sum(1).mean()

    head = nn.Linear(5, 4)
    fit_head(head, features, labels, loss)
    found = torch.cat([head.weight, head.bias.unsqueeze(1)], 1).detach()
    slow = torch.zeros(4, 6, requires_grad=True)
    for _ in range(3000):  # plain gradient descent
        (grad,) = torch.autograd.grad(value(slow), slow)
        slow = (slow - 0.2 * grad).detach().requires_grad_()
    assert value(found) <= value(slow) * 1.02
    assert value(found) < 0.7 * value(torch.zeros(4, 6))


@pytest.mark.parametrize("kind", ["logit-adjusted", "one-vs-all"])
def test_rows_of_classes_that_nobody_asked_for_stay_zero(kind):
    features, labels = problem()
    head = nn.Linear(5, 4)
    fit_head(head, features, labels, client_loss(kind, torch.bincount(labels, minlength=4)))
    assert not head.weight[3].any() and head.bias[3] == 0
    assert head.weight[:3].any(1).all()
    assert all(parameter.grad is None for parameter in head.parameters())


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_when_time_runs_out_the_features_so_far_are_there(batches):
    model, shard = tiny_vit().eval(), shard_of([0, 1, 2] * 10)
    asked = []

    def in_time() -> bool:
        asked.append(None)
        return len(asked) < batches

    features = shard_features(model, shard.images.split(7), in_time=in_time)
    whole = shard_features(model, shard.images.split(7))
    assert len(whole) == 30 and len(features) == min(7 * batches, 30)
    assert torch.equal(features, whole[: len(features)])
    assert torch.allclose(whole, model(model.spec.normalise(shard.images)).features, atol=1e-6)


def test_a_fit_without_time_stops_after_its_first_round():
    features, labels = problem()
    loss = client_loss("one-vs-all", torch.bincount(labels, minlength=4))
    hurried, whole = nn.Linear(5, 4), nn.Linear(5, 4)
    fit_head(hurried, features, labels, loss, in_time=lambda: False)
    fit_head(whole, features, labels, loss)
    with torch.no_grad():
        values = [float(loss(head(features), labels)) for head in (hurried, whole)]
    assert values[1] <= values[0] < 0.6
