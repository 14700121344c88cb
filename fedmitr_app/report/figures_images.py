"""Figures of images: what was synthesised, which patches survived, where attention lies."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from fedmitr_app.report.canvas import COLOURS, INK, canvas, label
from fedmitr_app.report.data import PoolSample

MOST_IMAGES = 30
_PAPER = np.array([0.90, 0.92, 0.95])  # what dropped patches fade into
_FADE = 0.80
_GAP = 0.06  # between an image and its companion, in image widths


def synthetic_images(sample: PoolSample | None, path: Path) -> Path | None:
    """Draw images, each beside itself with the patches that did not survive faded out.

    Parameters
    ----------
    sample : PoolSample | None
        At most 30 of its images are drawn, spread evenly over it.
    path : Path
        The PNG to write.

    Returns
    -------
    Path | None
        ``path``, or None when there are no images.
    """
    if sample is None or len(sample.images) == 0:
        return None
    size = sample.images.shape[-1]
    grid = size // sample.patch_size
    companion = None
    if sample.kept is not None:
        kept = sample.kept

        def companion(axes: Axes, index: int, picture: np.ndarray, left: float) -> None:
            flat = np.zeros(grid * grid, dtype=bool)
            flat[np.asarray(torch.as_tensor(kept[index]).cpu()).astype(int)] = True
            alive = flat.reshape(grid, grid)
            fade = np.kron(~alive, np.ones((sample.patch_size,) * 2))[..., None] * _FADE
            _show(axes, picture * (1 - fade) + _PAPER * fade, left)
            axes.add_collection(
                LineCollection(
                    _outline(alive, sample.patch_size, left),
                    colors=COLOURS["student"],
                    linewidths=0.9,
                )
            )

    return _pairs(sample, path, companion)


def attention_maps(sample: PoolSample | None, path: Path) -> Path | None:
    """Draw images, each beside the teacher's attention to its patches.

    Each map has its own scale: dark is that image's least, bright its most attended.
    """
    if sample is None or len(sample.images) == 0 or sample.attention is None:
        return None
    attention = sample.attention.detach().float().cpu()

    def companion(axes: Axes, index: int, picture: np.ndarray, left: float) -> None:
        heat = attention[index].nan_to_num()
        low, high = heat.min(), heat.max()
        heat = (heat - low) / (high - low).clamp(min=1e-12)
        heat = torch.nn.functional.interpolate(
            heat[None, None], size=picture.shape[:2], mode="bilinear", align_corners=False
        )[0, 0]
        colours = colormaps["inferno"](heat.numpy())[..., :3]
        grey = picture.mean(axis=-1, keepdims=True)
        _show(axes, 0.72 * colours + 0.28 * grey, left)

    return _pairs(sample, path, companion)


def spread(count: int, most: int) -> list[int]:
    """Return at most ``most`` of ``count`` indices, evenly spread."""
    if count <= most:
        return list(range(count))
    return [index * count // most for index in range(most)]


_Companion = Callable[[Axes, int, np.ndarray, float], None]


def _pairs(sample: PoolSample, path: Path, companion: _Companion | None) -> Path:
    chosen = spread(len(sample.images), MOST_IMAGES)
    columns = min(len(chosen), 5 if companion else 10)
    rows = -(-len(chosen) // columns)
    pictures = _pictures(sample.images[chosen])
    side = 8.0 / (columns * (2.2 if companion else 1.12))
    side = min(side, 1.3)
    titled = bool(len(sample.titles))
    height = rows * (side * 1.08 + (0.22 if titled else 0.04))
    with canvas(path, columns * side * (2.2 if companion else 1.12), height) as figure:
        layout = figure.get_layout_engine()
        assert isinstance(layout, ConstrainedLayoutEngine)  # every canvas has it
        layout.set(w_pad=0.03, h_pad=0.02, hspace=0.02, wspace=0.02)
        places = _places(figure, rows, columns)
        for axes, index, picture in zip(places, chosen, pictures, strict=False):
            _show(axes, picture, 0.0)
            width = picture.shape[1]
            right = width
            if companion is not None:
                left = width * (1 + _GAP)
                companion(axes, index, picture, left)
                right = left + width
            axes.set_xlim(-0.01 * width, right + 0.01 * width)
            axes.set_ylim(picture.shape[0] * 1.01, -0.01 * width)
            if titled and index < len(sample.titles):
                axes.set_title(label(sample.titles[index], 20), fontsize=7.5, color=INK, pad=2)
    return path


def _places(figure: Figure, rows: int, columns: int) -> list[Axes]:
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in places:
        axes.set_axis_off()
        axes.set_aspect("equal")
    return places


def _pictures(images: Tensor) -> list[np.ndarray]:
    """Turn images [n, C, H, W] into RGB arrays [H, W, 3] with values in [0, 1]."""
    pixels = images.detach().cpu()
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    pixels = pixels.nan_to_num().clamp(0, 1)
    if pixels.shape[1] != 3:
        pixels = pixels[:, :1].expand(-1, 3, -1, -1)
    return list(pixels.permute(0, 2, 3, 1).numpy())


def _show(axes: Axes, picture: np.ndarray, left: float) -> None:
    height, width = picture.shape[:2]
    axes.imshow(picture.clip(0, 1), extent=(left, left + width, height, 0), interpolation="nearest")


def _outline(alive: np.ndarray, patch: int, left: float) -> list[list[tuple[float, float]]]:
    """Return the segments, in pixels, between patches that live and patches that don't."""
    padded = np.pad(alive, 1)
    segments = []
    for row, column in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        x, y = left + column * patch, row * patch
        segments.append([(x, y), (x + patch, y)])
    for row, column in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        x, y = left + column * patch, row * patch
        segments.append([(x, y), (x, y + patch)])
    return segments
