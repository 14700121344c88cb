"""Per-image losses and priors against numpy loops."""

import math

import numpy as np
import pytest
import torch

from fedmitr_app.inversion.losses import cross_entropy, jensen_shannon, patch_similarity_entropy
from tests.inversion.tiny import draw


def probabilities(row: np.ndarray) -> np.ndarray:
    return np.exp(row) / np.exp(row).sum()


def test_cross_entropy():
    logits, targets = draw(3, 4), draw(3, 4, seed=1).softmax(-1)
    expected = [
        -sum(t * math.log(p) for t, p in zip(target, probabilities(row)))
        for row, target in zip(logits.numpy(), targets.numpy())
    ]
    assert cross_entropy(logits, targets).tolist() == pytest.approx(expected)


def test_patch_similarity_entropy():
    tokens, bins, width = draw(2, 6, 3), 16, 0.2
    expected = []
    for image in tokens.numpy():
        pairs = [
            float(image[a] @ image[b] / np.linalg.norm(image[a]) / np.linalg.norm(image[b]))
            for a in range(6)
            for b in range(a)
        ]
        points = np.linspace(-1, 1, bins)
        kernel = [sum(math.exp(-0.5 * ((p - s) / width) ** 2) for s in pairs) for p in points]
        cell = 2 / bins
        density = [value / (sum(kernel) * cell) for value in kernel]
        expected.append(sum(d * math.log(d) * cell for d in density))
    found = patch_similarity_entropy(tokens, bins, width)
    assert found.tolist() == pytest.approx(expected)


def test_varied_similarities_have_the_lower_loss():
    alike = torch.ones(1, 8, 3) + 0.01 * draw(1, 8, 3).float()
    varied = draw(1, 8, 3).float()
    assert patch_similarity_entropy(varied) < patch_similarity_entropy(alike)
    assert patch_similarity_entropy(varied[:, :1]).tolist() == [0.0]


def test_jensen_shannon():
    first, second = draw(3, 4), draw(3, 4, seed=1)
    expected = []
    for a, b in zip(first.numpy(), second.numpy()):
        p, q = probabilities(a), probabilities(b)
        m = (p + q) / 2
        expected.append(0.5 * float((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()))
    assert jensen_shannon(first, second).tolist() == pytest.approx(expected)


def test_jensen_shannon_is_symmetric_and_bounded():
    first, second = draw(3, 4), draw(3, 4, seed=1)
    torch.testing.assert_close(jensen_shannon(first, second), jensen_shannon(second, first))
    assert jensen_shannon(first, first).abs().max() < 1e-12
    apart = jensen_shannon(torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 100.0]]))
    assert apart.item() == pytest.approx(math.log(2))
