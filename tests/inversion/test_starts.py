"""Starting images: range, shape, seed, and some structure where it is promised."""

import pytest
import torch

from fedmitr_app.config.schema import STARTS
from fedmitr_app.inversion import starting_images
from fedmitr_app.inversion.starts import multi_scale_noise, procedural_images
from fedmitr_app.models import InputSpec
from fedmitr_app.randomness import generator

GREY = InputSpec(size=12, channels=1, mean=(0.4,), std=(0.3,))
COLOUR = InputSpec(size=9, channels=3, mean=(0.2, 0.5, 0.8), std=(0.1, 0.2, 0.3))


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("kind", STARTS)
def test_starts_are_valid_model_input(kind, spec):
    images = starting_images(kind, 20, spec, generator(0))
    assert images.shape == (20, spec.channels, spec.size, spec.size)
    assert images.dtype == torch.float32 and images.isfinite().all()
    low, high = spec.pixel_range(images)
    assert (images >= low - 1e-6).all() and (images <= high + 1e-6).all()


@pytest.mark.parametrize("kind", STARTS)
def test_the_generator_alone_decides(kind):
    torch.manual_seed(1)
    one = starting_images(kind, 5, GREY, generator(0))
    torch.manual_seed(2)
    assert torch.equal(one, starting_images(kind, 5, GREY, generator(0)))
    assert not torch.equal(one, starting_images(kind, 5, GREY, generator(1)))


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize(("count", "size"), [(1, 8), (3, 4)])
def test_few_and_small_images(kind, count, size):
    spec = InputSpec(size=size, channels=1, mean=(0.5,), std=(0.5,))
    images = starting_images(kind, count, spec, generator(0))
    assert images.shape == (count, 1, size, size) and images.isfinite().all()


def neighbour_correlation(images: torch.Tensor) -> float:
    flat = images - images.mean(dim=(2, 3), keepdim=True)
    return float((flat[..., 1:] * flat[..., :-1]).sum() / flat.square().sum())


def test_neighbours_are_alike_in_all_but_white_noise():
    spec = InputSpec(size=28, channels=1, mean=(0.5,), std=(0.5,))
    alike = {k: neighbour_correlation(starting_images(k, 64, spec, generator(0))) for k in STARTS}
    assert abs(alike["white"]) < 0.05
    assert alike["multi-scale"] > 0.5 and alike["procedural"] > 0.5


def test_steeper_slopes_are_smoother():
    shape = (32, 1, 16, 16)
    flat, steep = (
        neighbour_correlation(multi_scale_noise(shape, torch.full((32,), slope), generator(0)))
        for slope in (0.0, 2.0)
    )
    assert flat < steep
    noise = multi_scale_noise(shape, torch.ones(32), generator(0))
    torch.testing.assert_close(noise.std(dim=(2, 3)), torch.ones(32, 1))


def test_procedural_images_are_all_different():
    images = procedural_images(40, 12, 1, generator(0)).flatten(1)
    distances = torch.cdist(images, images) + torch.eye(40)
    assert distances.min() > 1e-3
