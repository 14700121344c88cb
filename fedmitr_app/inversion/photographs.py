"""Starts for models of photographs: dead leaves with natural spectra, crops of two photographs.

Both are generic: made by code, or from two photographs that come with scikit-learn; neither knows
anything of the data that clients hold.
"""

import functools

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from fedmitr_app.inversion.noise import multi_scale_noise

LEAVES = 128
"""Discs in an image: on average they cover it three times over."""
RADII = 0.04, 0.5
"""The smallest and the largest, in image widths (choice)."""
TINT, TEXTURE = 0.1, 0.15
"""Deviation of a leaf's channels from grey, and the most of its texture, of the range (choice)."""
AREAS = 0.02, 0.5
"""Of a photograph, that a crop takes (Asano & Saeed, ICLR 2023, crop likewise)."""
ASPECTS = 3 / 4, 4 / 3
JITTER, HUE = 0.4, 0.1
"""Brightness, contrast and saturation are 1 ± that; hue turns by ± that of a circle."""


def dead_leaves(count: int, size: int, channels: int, generator: torch.Generator) -> Tensor:
    """Draw discs that hide each other, pixels in [0, 1], ``[count, C, size, size]``.

    Radii follow the power law r^-3, which makes images that look alike at every scale, as
    photographs do (Lee, Mumford & Huang, IJCV 2001); each disc has a colour near a grey and a
    texture with the 1/f spectrum of natural images (Baradad et al., NeurIPS 2021).
    """
    texture = multi_scale_noise((count, 1, size, size), torch.ones(count), generator)
    if channels > 1:
        tints = multi_scale_noise((count, channels, size, size), torch.ones(count), generator)
        texture = (texture + TINT * tints) / (1 + TINT**2) ** 0.5
    # The last one lies on top; the first, as large as can be, is the ground.
    shape = (count, LEAVES + 1)
    grey = torch.rand(*shape, 1, generator=generator)
    tint = TINT * torch.randn(*shape, channels, generator=generator) * (channels > 1)
    depth = TEXTURE * torch.rand(shape, generator=generator)
    small, large = (radius**-2 for radius in RADII)
    radii = (small + (large - small) * torch.rand(shape, generator=generator)).rsqrt() * size
    radii[:, 0] = 2 * size
    centres = torch.rand(*shape, 2, generator=generator) * size
    corners = torch.rand(*shape, 2, generator=generator)
    axis = torch.arange(size) + 0.5
    images = torch.zeros(count, channels, size, size)
    for image in range(count):
        leaves = zip(
            radii[image],
            centres[image],
            corners[image],
            grey[image] + tint[image],
            depth[image],
            strict=True,
        )
        for radius, centre, corner, colour, deep in leaves:
            rows, cols = (_box(float(at), float(radius), size) for at in centre)
            away = torch.hypot(axis[rows, None] - centre[0], axis[None, cols] - centre[1])
            high, wide = away.shape
            top, left = int(corner[0] * (size - high + 1)), int(corner[1] * (size - wide + 1))
            paint = texture[image, :, top : top + high, left : left + wide]
            paint = colour.reshape(-1, 1, 1) + deep * paint
            images[image, :, rows, cols].lerp_(paint, (0.5 + radius - away).clamp(0, 1))
    return images.clamp_(0, 1)


def _box(centre: float, radius: float, size: int) -> slice:
    """Return the pixels of an axis that a disc reaches, at least one."""
    first = min(max(int(centre - radius - 1), 0), size - 1)
    return slice(first, max(min(int(centre + radius + 2), size), first + 1))


@functools.cache
def photographs() -> tuple[Tensor, ...]:
    """Return the two photographs inside scikit-learn, uint8 ``[3, H, W]`` each."""
    return tuple(
        torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images
    )


def photo_crops(count: int, size: int, channels: int, generator: torch.Generator) -> Tensor:
    """Crop, mirror and recolour the two photographs: pixels in [0, 1], ``[count, C, size, size]``.

    The augmented image prior (Asano & Saeed, "The Augmented Image Prior", ICLR 2023): crops of a
    single photograph teach a student much of what a data set would.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    images = []
    for _ in range(count):
        photo = photographs()[int(uniform(0, len(photographs())))]
        height, width = photo.shape[1:]
        area = uniform(*AREAS) * height * width
        aspect = ASPECTS[0] * (ASPECTS[1] / ASPECTS[0]) ** uniform(0, 1)
        high = min(round((area / aspect) ** 0.5), height)
        wide = min(round((area * aspect) ** 0.5), width)
        top, left = int(uniform(0, height - high + 1)), int(uniform(0, width - wide + 1))
        crop = transforms.resized_crop(photo, top, left, high, wide, [size, size])
        crop = transforms.to_dtype(crop, torch.float32, scale=True)
        if uniform(0, 1) < 0.5:
            crop = transforms.horizontal_flip(crop)
        for change in (
            transforms.adjust_brightness,
            transforms.adjust_contrast,
            transforms.adjust_saturation,
        ):
            crop = change(crop, uniform(1 - JITTER, 1 + JITTER))
        crop = transforms.adjust_hue(crop, uniform(-HUE, HUE))
        images.append(transforms.rgb_to_grayscale(crop, 1) if channels == 1 else crop)
    return torch.stack(images)
