"""Per-image losses and priors against numpy loops."""

import math

import numpy as np
import pytest

from fedmitr_app.inversion.losses import cross_entropy
from tests.helpers.tiny import draw


def probabilities(row: np.ndarray) -> np.ndarray:
    return np.exp(row) / np.exp(row).sum()


def test_cross_entropy():
    logits, targets = draw(3, 4), draw(3, 4, seed=1).softmax(-1)
    expected = [
        -sum(t * math.log(p) for t, p in zip(target, probabilities(row)))
        for row, target in zip(logits.numpy(), targets.numpy())
    ]
    assert cross_entropy(logits, targets).tolist() == pytest.approx(expected)
