"""Total variation against loops and finite differences."""

import math

import pytest
import torch

from fedmitr_app.inversion.total_variation import total_variation
from tests.helpers.tiny import draw


def test_total_variation_over_four_neighbours():
    images = draw(2, 3, 5, 5)
    expected = []
    for image in images.numpy():
        total = 0.0
        for down, right in ((1, 0), (0, 1), (1, -1), (1, 1)):
            squares = 0.0
            for channel in image:
                for row in range(5):
                    for col in range(5):
                        if row + down < 5 and 0 <= col + right < 5:
                            step = channel[row + down, col + right] - channel[row, col]
                            squares += step**2
            total += math.sqrt(squares)
        expected.append(total)
    assert total_variation(images)[0].tolist() == pytest.approx(expected)


def test_the_gradient_of_total_variation_against_finite_differences():
    images = draw(2, 2, 4, 4).double()
    _, grad = total_variation(images)
    for place in range(images[0].numel()):
        nudge = torch.zeros(2, images[0].numel(), dtype=torch.float64)
        nudge[:, place] = 1e-6
        nudge = nudge.reshape(images.shape)
        rise = total_variation(images + nudge)[0] - total_variation(images - nudge)[0]
        torch.testing.assert_close(grad.flatten(1)[:, place], rise / 2e-6, rtol=1e-5, atol=1e-7)


def test_total_variation_of_a_flat_image_has_no_gradient():
    flat = torch.full((1, 1, 4, 4), 0.3)
    _, grad = total_variation(flat)
    assert torch.equal(grad, torch.zeros_like(flat))
