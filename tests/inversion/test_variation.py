"""Total variation against loops, and its windows against the whole."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmitr_app.inversion.geometry import own_pixels, read_patches, write_patches
from fedmitr_app.inversion.variation import (
    WholeVariation,
    WindowedVariation,
    total_variation,
    variation_of,
)
from tests.inversion.tiny import draw


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


@given(data=st.data(), patch=st.sampled_from([1, 2, 4]), channels=st.sampled_from([1, 3]))
def test_windows_say_what_the_whole_image_says_wherever_patches_move(data, patch, channels):
    size = 8
    grid = range((size // patch) ** 2)
    count = data.draw(st.integers(1, len(grid)))
    drawn = st.lists(st.sampled_from(grid), min_size=count, max_size=count, unique=True)
    alive = torch.tensor([sorted(data.draw(drawn)) for _ in range(2)])
    images = draw(2, channels, size, size, seed=data.draw(st.integers(0, 99)))
    own = own_pixels(alive, size, patch)
    windowed = WindowedVariation(images, alive, own, patch)
    for seed in (1, 2):  # as often as they move
        write_patches(images, draw(2, count, channels * patch**2, seed=seed), own)
        value, slope = windowed(images)
        whole, grad = total_variation(images)
        torch.testing.assert_close(value, whole)
        torch.testing.assert_close(slope, read_patches(grad, own))


def test_in_single_precision_windows_are_as_good():
    images = draw(8, 3, 32, 32).float()
    alive = torch.tensor([[0, 5, 6, 15]]).expand(8, -1)
    own = own_pixels(alive, 32, 8)
    windowed = WindowedVariation(images, alive, own, 8)
    write_patches(images, 0.01 * draw(8, 4, 3 * 64).float(), own)  # smooth beside what stopped
    value, slope = windowed(images)
    whole, grad = total_variation(images.double())
    torch.testing.assert_close(value.double(), whole, rtol=1e-5, atol=0)
    torch.testing.assert_close(slope.double(), read_patches(grad, own), rtol=1e-3, atol=1e-6)


def test_windows_of_a_flat_image_have_no_slope():
    images = torch.full((1, 1, 8, 8), 0.3)
    alive = torch.tensor([[0, 3]])
    value, slope = WindowedVariation(images, alive, own_pixels(alive, 8, 4), 4)(images)
    assert torch.equal(slope, torch.zeros_like(slope)) and float(value) < 1e-2


def test_windows_are_taken_where_few_patches_move():
    images = torch.zeros(1, 1, 28, 28)
    few, many = (torch.arange(count).reshape(1, -1) for count in (3, 9))
    for alive, expected in ((few, WindowedVariation), (many, WholeVariation)):
        assert isinstance(variation_of(images, alive, own_pixels(alive, 28, 7), 7), expected)
