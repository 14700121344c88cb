"""Combining client logits: hand-computed cases, and loops over numbers as the oracle."""

import math
import statistics

import pytest
import torch

from fedmitr_app.config.schema import COMBINATIONS
from fedmitr_app.teacher import combine_logits
from fedmitr_app.teacher.combine import confidence

LOGIT_MEANS = ("mean-logits", "label-aware", "prior-probed", "prior-shared", "class-means")
BY_CONFIDENCE = ("confidence", "prior-confidence")


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def oracle(rows: list[list[float]], how: str, weights: list[list[float]]) -> list[float]:
    """One image: the probabilities that the given clients' logits combine to."""
    classes, sure = len(rows[0]), [1.0] * len(rows)
    if how in BY_CONFIDENCE:
        entropies = [-sum(p * math.log(p) for p in softmax(row)) for row in rows]
        sure = [math.exp(-4 * entropy / math.log(classes)) for entropy in entropies]
    combined = []
    for label in range(classes):
        shares = [weights[k][label] for k in range(len(rows))]
        if sum(shares) == 0:
            shares = [1.0] * len(rows)
        shares = [share * factor for share, factor in zip(shares, sure)]
        parts = rows if how in LOGIT_MEANS else [softmax(row) for row in rows]
        if how == "median-softmax":
            combined.append(math.log(statistics.median(softmax(row)[label] for row in rows)))
            continue
        mean = sum(s * part[label] for s, part in zip(shares, parts)) / sum(shares)
        combined.append(mean if how in LOGIT_MEANS else math.log(mean))
    return softmax(combined)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=rng, dtype=torch.float64)


WEIGHTS = draw(3, 5, seed=1).abs()


@pytest.mark.parametrize("how", COMBINATIONS)
def test_class_tokens_against_the_oracle(how):
    logits = draw(3, 4, 5)
    combined = combine_logits(logits, how, WEIGHTS).softmax(-1)
    for image in range(4):
        expected = oracle(logits[:, image].tolist(), how, WEIGHTS.tolist())
        assert combined[image].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("how", COMBINATIONS)
def test_patch_tokens_and_members_against_the_oracle(how):
    logits = draw(3, 2, 6, 5)
    members = torch.tensor([[True, False], [False, True], [True, True]])
    combined = combine_logits(logits, how, WEIGHTS, members).softmax(-1)
    assert combined.shape == (2, 6, 5)
    for image in range(2):
        served = [k for k in range(3) if members[k, image]]
        for token in range(6):
            rows = [logits[k, image, token].tolist() for k in served]
            expected = oracle(rows, how, [WEIGHTS[k].tolist() for k in served])
            assert combined[image, token].tolist() == pytest.approx(expected, abs=1e-6)


TWO = torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]]])
EVEN = torch.ones(2, 2)


def test_by_hand():
    assert combine_logits(TWO, "mean-logits", EVEN).tolist() == [[1.0, 2.0]]
    first, second = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(4))
    assert combine_logits(TWO, "mean-softmax", EVEN).exp()[0, 0].item() == pytest.approx(
        (first + second) / 2
    )
    sizes = torch.tensor([[30.0, 30.0], [10.0, 10.0]])
    assert combine_logits(TWO, "num-examples", sizes).exp()[0, 0].item() == pytest.approx(
        0.75 * first + 0.25 * second
    )
    # Each class is answered by the client that holds it.
    counts = torch.tensor([[5.0, 0.0], [0.0, 7.0]])
    assert combine_logits(TWO, "label-aware", counts).tolist() == [[2.0, 4.0]]
    assert combine_logits(TWO, "prior-probed", 1 + counts).tolist() == [
        pytest.approx([2 * 6 / 7, 4 * 8 / 9])
    ]


def test_confidence_of_the_certain_and_the_clueless():
    logits = torch.tensor([[50.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert confidence(logits).tolist() == pytest.approx([1.0, math.exp(-4)])


def test_a_confident_client_outweighs_a_clueless_one():
    logits = torch.tensor([[[9.0, 0.0, 0.0]], [[0.0, 0.1, 0.0]]])
    by_mean = combine_logits(logits, "mean-softmax", torch.ones(2, 3)).softmax(-1)
    by_confidence = combine_logits(logits, "confidence", torch.ones(2, 3)).softmax(-1)
    assert by_mean[0, 0] < 0.7 < 0.95 < by_confidence[0, 0]


@pytest.mark.parametrize("how", COMBINATIONS)
def test_one_client_alone_keeps_its_answer(how):
    logits = draw(1, 4, 5)
    combined = combine_logits(logits, how, torch.full((1, 5), 3.0, dtype=torch.float64))
    torch.testing.assert_close(combined.softmax(-1), logits[0].softmax(-1))


@pytest.mark.parametrize("how", COMBINATIONS)
def test_the_clients_order_does_not_matter(how):
    logits, order = draw(3, 4, 5), torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        combine_logits(logits[order], how, WEIGHTS[order]), combine_logits(logits, how, WEIGHTS)
    )


@pytest.mark.parametrize("how", COMBINATIONS)
def test_who_does_not_serve_an_image_has_no_influence(how):
    members = torch.tensor([[True], [False], [True]])
    logits = draw(3, 1, 5).requires_grad_()
    combined = combine_logits(logits, how, WEIGHTS, members)
    (grad,) = torch.autograd.grad(combined.square().sum(), logits)
    assert grad[1].abs().max() == 0 and grad[0].abs().min() > 0
    changed = logits.detach().clone()
    changed[1] = 1e6
    assert torch.equal(combine_logits(changed, how, WEIGHTS, members), combined)


def test_a_class_that_no_serving_client_knows_is_answered_by_them_alike():
    logits = torch.tensor([[[3.0, -4.0]], [[1.0, -6.0]], [[0.0, 8.0]]])
    counts = torch.tensor([[5.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    members = torch.tensor([[True], [True], [False]])
    assert combine_logits(logits, "label-aware", counts, members).tolist() == [[2.0, -5.0]]
