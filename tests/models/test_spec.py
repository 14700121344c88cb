"""Normalisation, pixel ranges and the form an input spec travels in."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fedmitr_app.models import InputSpec

COLOUR = InputSpec(size=4, channels=3, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.5))


def test_normalise_by_hand():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(2, 3, 4, 4)
    normal = COLOUR.normalise(pixels)
    assert normal.dtype == torch.float32
    assert normal[1, :, 2, 3].tolist() == pytest.approx([-5.0, (0.2 - 0.4) / 0.2, 0.7 / 0.5])
    torch.testing.assert_close(COLOUR.normalise(pixels.float() / 255), normal)


def test_denormalise_is_the_inverse_within_the_range():
    pixels = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(COLOUR.denormalise(COLOUR.normalise(pixels)), pixels)
    assert COLOUR.denormalise(torch.full((1, 3, 4, 4), 100.0)).max() == 1


def test_pixel_range_is_that_of_black_and_white():
    low, high = COLOUR.pixel_range(torch.empty(0))
    black, white = (COLOUR.normalise(torch.full((1, 3, 4, 4), unit)) for unit in (0.0, 1.0))
    torch.testing.assert_close(low.expand(1, 3, 4, 4), black)
    torch.testing.assert_close(high.expand(1, 3, 4, 4), white)


def test_one_value_serves_all_channels():
    one = InputSpec(4, 3, mean=(0.5,), std=(0.25,))
    three = InputSpec(4, 3, mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels = torch.rand(1, 3, 4, 4)
    assert torch.equal(one.normalise(pixels), three.normalise(pixels))
    assert one.pixel_range(pixels)[0].shape == (1, 3, 1, 1)


def test_it_travels_as_json():
    assert InputSpec.from_dict(json.loads(json.dumps(COLOUR.to_dict()))) == COLOUR


@pytest.mark.parametrize("broken", [{}, {"size": "x"}, {**COLOUR.to_dict(), "mean": None}])
def test_a_broken_form_raises(broken):
    with pytest.raises((KeyError, TypeError, ValueError)):
        InputSpec.from_dict({**{"channels": 1, "mean": [0], "std": [1]}, **broken})


def test_small_images_are_enlarged_as_pillow_does_it():
    noise = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    small = Image.fromarray(noise).resize((32, 32), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]
    large = np.array(small.resize((96, 96), Image.Resampling.BICUBIC))
    spec = InputSpec(size=96, channels=3, mean=(0.0,), std=(1.0,))
    found = spec.normalise(pixels)[0].permute(1, 2, 0)
    # Pillow rounds to whole grey levels, twice.
    assert (found * 255 - torch.from_numpy(large)).abs().max() <= 2.5
    assert found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(spec.normalise(pixels.float() / 255)[0].permute(1, 2, 0), found)


def test_images_of_the_right_size_are_left_alone():
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    spec = InputSpec(size=8, channels=3, mean=(0.0,), std=(1.0,))
    assert torch.equal(spec.normalise(pixels), pixels.float() / 255)
