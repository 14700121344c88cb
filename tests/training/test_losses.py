"""Clients' losses against slow formulas, and what they leave alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmitr_app.config.schema import LOSSES
from fedmitr_app.training.losses import client_loss

OWN = [loss for loss in LOSSES if loss != "cross-entropy"]


def batch(counts: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of a whole shard."""
    labels = torch.cat([torch.full((count,), c) for c, count in enumerate(counts)])
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(len(labels), len(counts), generator=draws, dtype=torch.float64), labels


def slow_softmax(logits, labels, priors, smoothing):
    """Over the classes that have a prior."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist()):
        moved = {c: row[c] + math.log(prior) for c, prior in priors.items()}
        norm = math.log(sum(math.exp(z) for z in moved.values()))
        for c in priors:
            target = (1 - smoothing) * (c == label) + smoothing / len(priors)
            total -= target * (moved[c] - norm)
    return total / len(labels)


def slow_cross_entropy(logits, labels, counts, smoothing, balance):
    return slow_softmax(logits, labels, {c: 1.0 for c in range(len(counts))}, smoothing)


def slow_logit_adjusted(logits, labels, counts, smoothing, balance):
    priors = {c: (count / sum(counts)) ** balance for c, count in enumerate(counts) if count}
    return slow_softmax(logits, labels, priors, smoothing)


def slow_one_vs_all(logits, labels, counts, smoothing, balance):
    total = 0.0
    held = [c for c, count in enumerate(counts) if count]
    size = sum(counts)
    for row, label in zip(logits.tolist(), labels.tolist()):
        for c in held:
            target = (1 - smoothing) * (c == label) + smoothing / 2
            share = counts[c] / size if c == label else 1 - counts[c] / size
            p = 1 / (1 + math.exp(-row[c]))
            one = -(target * math.log(p) + (1 - target) * math.log(1 - p))
            total += (0.5 / share) ** balance * one / len(held)
    return total / len(labels)


SLOW = {
    "cross-entropy": slow_cross_entropy,
    "logit-adjusted": slow_logit_adjusted,
    "one-vs-all": slow_one_vs_all,
}


@given(
    kind=st.sampled_from(LOSSES),
    counts=st.lists(st.integers(0, 4), min_size=2, max_size=5).filter(sum),
    smoothing=st.sampled_from([0.0, 0.1]),
    balance=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_each_loss_is_its_formula(kind, counts, smoothing, balance):
    logits, labels = batch(counts)
    loss = client_loss(kind, torch.tensor(counts), smoothing, balance)(logits, labels)
    slow = SLOW[kind](logits, labels, counts, smoothing, balance)
    assert loss.item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("kind", OWN)
def test_classes_that_a_shard_lacks_are_not_asked_for(kind):
    counts = [3, 0, 2, 0]
    logits, labels = batch(counts)
    logits.requires_grad_()
    client_loss(kind, torch.tensor(counts))(logits, labels).backward()
    assert not logits.grad[:, [1, 3]].any()
    assert logits.grad[:, [0, 2]].all()


def test_in_one_vs_all_a_rare_class_weighs_as_much_as_all_other_images():
    counts = [9, 1]
    logits, labels = batch(counts)
    logits = torch.zeros_like(logits).requires_grad_()
    client_loss("one-vs-all", torch.tensor(counts))(logits, labels).backward()
    # At the logit 0 a class's images pull as hard as the others push.
    assert torch.allclose(logits.grad.sum(0), torch.zeros(2, dtype=torch.float64), atol=1e-6)
    assert logits.grad[9, 1] == pytest.approx(-9 * logits.grad[0, 1].item())


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("counts", [[4, 0, 0], [1, 0, 0], [0, 0, 1]])
def test_a_shard_of_one_class_has_a_finite_loss(kind, counts):
    logits, labels = batch(counts)
    logits.requires_grad_()
    loss = client_loss(kind, torch.tensor(counts))(logits, labels)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
