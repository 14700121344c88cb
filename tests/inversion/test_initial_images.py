"""Starting images: range, shape, seed, and some structure where it is promised."""

import pytest
import torch

from fedmitr_app.config.schema import INITIAL_IMAGES
from fedmitr_app.inversion import draw_initial_images
from fedmitr_app.inversion.initial_images import procedural_images
from fedmitr_app.inversion.noise import multi_scale_noise
from fedmitr_app.inversion.photographs import dead_leaves, photo_crops, photographs
from fedmitr_app.models import InputSpec
from fedmitr_app.utils.randomness import generator

GREY = InputSpec(size=12, channels=1, mean=(0.4,), std=(0.3,))
COLOUR = InputSpec(size=9, channels=3, mean=(0.2, 0.5, 0.8), std=(0.1, 0.2, 0.3))


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("kind", INITIAL_IMAGES)
def test_starts_are_valid_model_input(kind, spec):
    images = draw_initial_images(kind, 20, spec, generator(0))
    assert images.shape == (20, spec.channels, spec.size, spec.size)
    assert images.dtype == torch.float32 and images.isfinite().all()
    low, high = spec.pixel_range(images)
    assert (images >= low - 1e-6).all() and (images <= high + 1e-6).all()


@pytest.mark.parametrize("kind", INITIAL_IMAGES)
def test_the_generator_alone_decides(kind):
    torch.manual_seed(1)
    one = draw_initial_images(kind, 5, GREY, generator(0))
    torch.manual_seed(2)
    assert torch.equal(one, draw_initial_images(kind, 5, GREY, generator(0)))
    assert not torch.equal(one, draw_initial_images(kind, 5, GREY, generator(1)))


@pytest.mark.parametrize("kind", INITIAL_IMAGES)
@pytest.mark.parametrize(("count", "size"), [(1, 8), (3, 4)])
def test_few_and_small_images(kind, count, size):
    spec = InputSpec(size=size, channels=1, mean=(0.5,), std=(0.5,))
    images = draw_initial_images(kind, count, spec, generator(0))
    assert images.shape == (count, 1, size, size) and images.isfinite().all()


def neighbour_correlation(images: torch.Tensor) -> float:
    flat = images - images.mean(dim=(2, 3), keepdim=True)
    return float((flat[..., 1:] * flat[..., :-1]).sum() / flat.square().sum())


def test_neighbours_are_alike_in_all_but_white_noise():
    spec = InputSpec(size=28, channels=1, mean=(0.5,), std=(0.5,))
    alike = {
        kind: neighbour_correlation(draw_initial_images(kind, 64, spec, generator(0)))
        for kind in INITIAL_IMAGES
    }
    assert abs(alike["white"]) < 0.05
    assert all(value > 0.5 for kind, value in alike.items() if kind != "white")


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


# --- for photographs


def spectrum_slope(images: torch.Tensor) -> float:
    """The exponent of the amplitude spectrum over frequency, from 2 to a third of Nyquist's."""
    size = images.shape[-1]
    power = torch.fft.fft2(images.mean(1)).abs().square().mean(0)
    freq = torch.fft.fftfreq(size, 1 / size)
    radius = torch.hypot(freq[:, None], freq[None, :]).round().long()
    bins = torch.arange(2, size // 6)
    amplitude = torch.stack([power[radius == each].mean().sqrt() for each in bins]).log()
    logs = bins.float().log()
    logs -= logs.mean()
    return float((logs * amplitude).sum() / logs.square().sum())


@pytest.mark.parametrize("make", [dead_leaves, photo_crops])
def test_starts_for_photographs_have_their_spectrum(make):
    assert -1.8 < spectrum_slope(make(24, 64, 3, generator(0))) < -0.8


@pytest.mark.parametrize("make", [dead_leaves, photo_crops])
def test_colours_are_near_grey_as_in_photographs_and_grey_models_get_grey(make):
    images = make(24, 32, 3, generator(0))
    apart = images - images.mean(1, keepdim=True)
    assert 0.01 < apart.square().mean().sqrt() < 0.7 * images.std()
    grey = make(6, 32, 1, generator(0))
    assert grey.shape == (6, 1, 32, 32) and grey.std(dim=(2, 3)).min() > 0.01


def test_leaves_hide_each_other_and_leave_no_ground_bare():
    """Most neighbours are alike and a few are far apart: flat discs with sharp borders."""
    images = dead_leaves(16, 64, 1, generator(0))
    steps = (images[..., 1:] - images[..., :-1]).abs()
    assert steps.median() < 0.03 and (steps > 0.15).float().mean() > 0.01
    assert images.mean() == pytest.approx(0.5, abs=0.1)


def test_crops_show_parts_of_the_photographs(monkeypatch):
    """Without recolouring: a crop's pixels are found where it was cut, up to the resize."""
    assert len(photographs()) == 2
    assert all(photo.dtype == torch.uint8 and photo.shape[0] == 3 for photo in photographs())
    monkeypatch.setattr("fedmitr_app.inversion.photographs.JITTER", 0.0)
    monkeypatch.setattr("fedmitr_app.inversion.photographs.HUE", 0.0)
    low = torch.stack([photo.flatten(1).amin(1) for photo in photographs()]).amin(0) / 255
    crops = photo_crops(30, 16, 3, generator(0))
    means = {tuple(round(float(value), 3) for value in crop.mean(dim=(1, 2))) for crop in crops}
    assert len(means) == 30 and (crops.amin(dim=(0, 2, 3)) >= low - 1e-6).all()
    # Each photograph is as likely: theirs differ in how blue they are.
    assert 0 < sum(mean[2] > mean[0] for mean in means) < 30
