"""Random views of training images, one draw per image, the whole batch at once."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The customary 4 pixels of a 32-pixel image; 3 of a 28-pixel digit.
SHIFT_SHARE = 1 / 8
# Handwriting and scans vary this much without becoming something else (choice).
TURN_DEGREES, ZOOM_SHARE, SLIDE_SHARE = 15.0, 0.15, 0.1


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Move every image by its own random amount: slide, flip, turn or zoom, as ``kind`` says.

    Pixels that come in from outside repeat the edge: black around a digit, more of the same
    in a photograph, where a black bar would be a mark that no test image has.

    Parameters
    ----------
    images : Tensor
        Any dtype and device, ``[B, C, H, W]``.
    kind : str
        ``"none"``, ``"shift"`` (up to an eighth of the side, both axes),
        ``"shift-flip"`` (also left-right, every other image) or ``"affine"`` (turned up to
        15°, zoomed up to 15 %, slid up to a tenth of the side, resampled bilinearly).
    generator : torch.Generator
        On the CPU, so that every device sees the same draws.

    Returns
    -------
    Tensor
        ``[B, C, H, W]``, same dtype and device.
    """
    if kind == "none":
        return images
    if kind == "affine":
        return _affine(images, generator)
    count, channels, height, width = images.shape
    rows = _shifted(count, height, generator)
    columns = _shifted(count, width, generator)
    if kind == "shift-flip":
        flip = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    rows = rows.to(images.device)[:, None, :, None].expand(count, channels, height, width)
    columns = columns.to(images.device)[:, None, None, :].expand(count, channels, height, width)
    return images.gather(2, rows).gather(3, columns)


def _shifted(count: int, side: int, generator: torch.Generator) -> Tensor:
    # [B, side]: which row (or column) of its image each output row reads.
    most = int(side * SHIFT_SHARE)
    offset = torch.randint(-most, most + 1, (count, 1), generator=generator)
    return (torch.arange(side) + offset).clamp(0, side - 1)


def _affine(images: Tensor, generator: torch.Generator) -> Tensor:
    turn, zoom, down, right = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle, scale = turn * math.radians(TURN_DEGREES), 1 + zoom * ZOOM_SHARE
    # In units of half a side, as grid_sample counts.
    slide = 2 * SLIDE_SHARE
    matrix = torch.stack(
        [
            torch.stack([scale * angle.cos(), -scale * angle.sin(), right * slide], dim=1),
            torch.stack([scale * angle.sin(), scale * angle.cos(), down * slide], dim=1),
        ],
        dim=1,
    ).to(images.device)
    pixels = images.float()
    grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
    seen = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return seen if images.is_floating_point() else seen.round().to(images.dtype)
