"""The decoupled loss against hand-computed cases and loops over patches."""

import math

import pytest
import torch

from fedmitr_app.distillation.losses import class_loss, soft_label_loss, token_loss


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def softmax(row, temperature: float = 1.0) -> list[float]:
    powers = [math.exp(float(value) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def kl(teacher, student, temperature: float) -> float:
    q, p = softmax(teacher, temperature), softmax(student, temperature)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(q, p))


def ce(student, target) -> float:
    return -sum(float(t) * math.log(p) for t, p in zip(target, softmax(student)))


def test_soft_labels_by_hand():
    # softmax (1/2, 1/2) against (3/4, 1/4)
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert soft_label_loss(student, teacher, 1.0).item() == pytest.approx(expected)
    # At T = 2 twice the logits have the same softmax, times T^2.
    assert soft_label_loss(student, 2 * teacher, 2.0).item() == pytest.approx(4 * expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
@pytest.mark.parametrize("hard", [0.0, 0.3, 1.0])
def test_class_loss(temperature, hard):
    student, teacher, targets = draw(3, 4), draw(3, 4, seed=1), draw(3, 4, seed=2).softmax(-1)
    expected = [
        (1 - hard) * kl(t, s, temperature) + hard * ce(s, y)
        for s, t, y in zip(student, teacher, targets)
    ]
    assert class_loss(student, teacher, targets, temperature, hard).tolist() == pytest.approx(
        expected
    )


def test_equal_logits_cost_nothing():
    logits = draw(3, 4)
    assert soft_label_loss(logits, logits + 5, 3.0).abs().max() < 1e-12


def token_loss_by_hand(logits, mask, targets, relabels, gamma, tau) -> list[float]:
    losses = []
    for image in range(len(logits)):
        total, patches = 0.0, logits.shape[1]
        for patch in range(patches):
            if mask[image, patch]:
                total += ce(logits[image, patch], targets[image])
            elif relabels is not None:
                label = relabels[image, patch if relabels.shape[1] > 1 else 0]
                total += gamma * kl(label, logits[image, patch], tau)
        losses.append(total / patches)
    return losses


@pytest.mark.parametrize("labels", ["none", "per patch", "per image"])
@pytest.mark.parametrize("kept", ["some", "all", "none"])
def test_token_loss(kept, labels):
    logits, targets = draw(3, 6, 4), draw(3, 4, seed=1).softmax(-1)
    mask = {"some": draw(3, 6, seed=2) > 0, "all": torch.ones(3, 6) > 0}
    mask["none"] = ~mask["all"]
    relabels = {
        "none": None,
        "per patch": draw(3, 6, 4, seed=3),
        "per image": draw(3, 1, 4, seed=4),
    }
    rest = (relabels[labels], 0.7, 1.5)
    expected = token_loss_by_hand(logits, mask[kept], targets, *rest)
    found = token_loss(logits, targets, mask[kept], *rest)
    assert found.tolist() == pytest.approx(expected)


def test_gamma_nought_leaves_the_relabel_term_out():
    logits, mask = draw(2, 6, 4), draw(2, 6, seed=2) > 0
    targets, relabels = draw(2, 4, seed=1).softmax(-1), draw(2, 1, 4, seed=4)
    torch.testing.assert_close(
        token_loss(logits, targets, mask, relabels, 0.0, 1.5),
        token_loss(logits, targets, mask, None, 1.0, 1.5),
    )


def test_dropped_patches_never_see_the_pseudo_label():
    logits, mask = draw(2, 6, 4), draw(2, 6, seed=2) > 0
    relabels, targets = draw(2, 6, 4, seed=3), draw(2, 4, seed=1).requires_grad_()
    none = torch.zeros_like(mask)
    loss = token_loss(logits, targets.softmax(-1), none, relabels, 1.0, 1.0)
    (grad,) = torch.autograd.grad(loss.sum(), targets)
    assert grad.abs().max() == 0
    moved = relabels + 3 * mask.unsqueeze(-1) * draw(2, 6, 4, seed=7)
    case = (logits, targets.softmax(-1), mask)
    torch.testing.assert_close(
        token_loss(*case, moved, 1.0, 1.0), token_loss(*case, relabels, 1.0, 1.0)
    )
