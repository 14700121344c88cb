"""Images that an inversion begins with (choice).

``white`` noise is the ancestor's choice (Sparse Model Inversion, ICML 2024). ``multi-scale``
noise has the 1/f spectrum of natural images. ``procedural`` images have image-like structure
made by code, in the spirit of Baradad et al., "Learning to See by Looking at Noise"
(NeurIPS 2021): level sets of noise, overlapping shapes ("dead leaves"), strokes and blobs
on plain, shaded or textured grounds. ``dead-leaves`` and ``photo-crops`` are for models of
photographs, see :mod:`~fedmitr_app.inversion.photographs`. All are generic: they know an image's
size and channels, nothing of any data set.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedmitr_app.inversion.noise import multi_scale_noise
from fedmitr_app.inversion.photographs import dead_leaves, photo_crops
from fedmitr_app.models import InputSpec


def draw_initial_images(
    kind: str, count: int, spec: InputSpec, generator: torch.Generator
) -> Tensor:
    """Draw images for an inversion to begin with.

    Parameters
    ----------
    kind : str
        One of :data:`~fedmitr_app.config.schema.INITIAL_IMAGES`.
    count : int
        How many.
    spec : InputSpec
        Their size, channels and normalisation.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    Tensor
        Model input ``[count, C, H, W]`` on the CPU, within the valid pixel range.
    """
    shape = (count, spec.channels, spec.size, spec.size)
    if kind == "white":
        low, high = spec.pixel_range(torch.empty(0))
        return torch.randn(shape, generator=generator).clamp(low, high)
    if kind == "multi-scale":
        field = multi_scale_noise(shape, torch.ones(count), generator)
        return spec.normalise((0.5 + 0.2 * field).clamp(0, 1))
    makers = {
        "procedural": procedural_images,
        "dead-leaves": dead_leaves,
        "photo-crops": photo_crops,
    }
    return spec.normalise(makers[kind](count, spec.size, spec.channels, generator))


def procedural_images(count: int, size: int, channels: int, generator: torch.Generator) -> Tensor:
    """Draw images with generic structure: float pixels in [0, 1], ``[count, C, size, size]``.

    Each image is a ground and a figure: a mask of one of four kinds (equally likely) that
    shows a second colour, both possibly shaded by smooth noise.
    """

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    makers: tuple[Callable[[int, int, torch.Generator], Tensor], ...] = (
        _level_sets,
        _blobs,
        _strokes,
        _leaves,
    )
    kinds = torch.randint(len(makers), (count,), generator=generator)
    mask = torch.zeros(count, 1, size, size)
    for kind, make in enumerate(makers):
        chosen = (kinds == kind).nonzero().flatten()
        if len(chosen):
            mask[chosen] = make(len(chosen), size, generator).unsqueeze(1)

    # Arcsine-distributed tones, so that strong contrast is as common as in photographs of
    # things against a ground; the figure lies on the other side of mid-grey.
    tone = 0.5 - 0.5 * torch.cos(math.pi * uniform(2, count, channels, 1, 1))
    dark, light = 0.5 * tone[0], 1 - 0.5 * tone[1]
    swap = uniform(count, 1, 1, 1) < 0.5
    ground, figure = torch.where(swap, light, dark), torch.where(swap, dark, light)
    shading = multi_scale_noise(
        (count, channels, size, size), uniform(count, low=0.3, high=1.5), generator
    )
    # Half of the images are flat; the others are shaded up to a fifth of the range.
    depth = 0.2 * uniform(count, 1, 1, 1) * (uniform(count, 1, 1, 1) < 0.5)
    return (ground + (figure - ground) * mask + depth * shading).clamp(0, 1)


def _pixel_grid(size: int) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(size) + 0.5) / size
    return axis.reshape(1, size, 1), axis.reshape(1, 1, size)


def _soft(distance: Tensor, size: int) -> Tensor:
    """Turn a signed distance (in image widths, negative inside) into an antialiased mask."""
    return (0.5 - distance * size).clamp(0, 1)


def _level_sets(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Smooth noise above a threshold."""
    slope = 0.8 + 0.8 * torch.rand(count, generator=generator)
    field = multi_scale_noise((count, 1, size, size), slope, generator)[:, 0]
    level = torch.rand(count, 1, 1, generator=generator) * 1.5 - 0.25
    return torch.sigmoid((field - level) * 6)


def _blobs(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw the union of one to four turned ellipses, half of them hollow."""
    mask = torch.zeros(count, size, size)
    number = torch.randint(1, 5, (count,), generator=generator)
    for index in range(4):
        distance = _ellipse(count, size, generator, 0.06, 0.3)
        width = 0.02 + 0.06 * torch.rand(count, 1, 1, generator=generator)
        hollow = torch.rand(count, 1, 1, generator=generator) < 0.5
        distance = torch.where(hollow, distance.abs() - width, distance)
        drawn = (number > index).reshape(-1, 1, 1)
        mask = torch.where(drawn, torch.maximum(mask, _soft(distance, size)), mask)
    return mask


def _ellipse(
    count: int, size: int, generator: torch.Generator, small: float, large: float
) -> Tensor:
    """Approximate signed distance to a random ellipse, ``[count, size, size]``."""
    rows, cols = _pixel_grid(size)
    draw = torch.rand(5, count, 1, 1, generator=generator)
    centre_row, centre_col = 0.15 + 0.7 * draw[0], 0.15 + 0.7 * draw[1]
    radius_a, radius_b = small + (large - small) * draw[2], small + (large - small) * draw[3]
    angle = math.pi * draw[4]
    along = (rows - centre_row) * angle.cos() + (cols - centre_col) * angle.sin()
    across = (cols - centre_col) * angle.cos() - (rows - centre_row) * angle.sin()
    radial = ((along / radius_a) ** 2 + (across / radius_b) ** 2).sqrt()
    return (radial - 1) * torch.minimum(radius_a, radius_b)


def _strokes(count: int, size: int, generator: torch.Generator, points: int = 16) -> Tensor:
    """One to four curved strokes; a stroke often goes on where the last one ended."""
    rows, cols = _pixel_grid(size)
    time = torch.linspace(0, 1, points).reshape(1, points, 1)
    basis = torch.cat([(1 - time) ** 2, 2 * time * (1 - time), time**2], dim=-1)
    radius = 0.02 + 0.06 * torch.rand(count, 1, 1, generator=generator)
    number = torch.randint(1, 5, (count,), generator=generator)
    mask = torch.zeros(count, size, size)
    end = torch.zeros(count, 2)
    for index in range(4):
        control = 0.12 + 0.76 * torch.rand(count, 3, 2, generator=generator)
        joined = torch.rand(count, generator=generator) < 0.6
        if index:
            control[joined, 0] = end[joined]
        end = control[:, 2]
        curve = basis @ control
        distance = torch.full((count, size, size), float("inf"))
        for start, stop in zip(curve[:, :-1].unbind(1), curve[:, 1:].unbind(1), strict=True):
            distance = torch.minimum(distance, _segment_distance(rows, cols, start, stop))
        drawn = (number > index).reshape(-1, 1, 1)
        mask = torch.where(drawn, torch.maximum(mask, _soft(distance - radius, size)), mask)
    return mask


def _segment_distance(rows: Tensor, cols: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """Distance of each pixel to the segments ``start -> stop`` (both ``[count, 2]``)."""
    row, col = start[:, 0, None, None], start[:, 1, None, None]
    step_row, step_col = (stop - start)[:, 0, None, None], (stop - start)[:, 1, None, None]
    length = (step_row**2 + step_col**2).clamp_min(1e-8)
    share = (((rows - row) * step_row + (cols - col) * step_col) / length).clamp(0, 1)
    return ((rows - row - share * step_row) ** 2 + (cols - col - share * step_col) ** 2).sqrt()


def _leaves(count: int, size: int, generator: torch.Generator, leaves: int = 12) -> Tensor:
    """Dead leaves: ellipses of random grey, each hiding what lies below."""
    canvas = torch.rand(count, 1, 1, generator=generator).expand(-1, size, size)
    for _ in range(leaves):
        cover = _soft(_ellipse(count, size, generator, 0.04, 0.25), size)
        grey = torch.rand(count, 1, 1, generator=generator)
        canvas = canvas + cover * (grey - canvas)
    return canvas
