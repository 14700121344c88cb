"""Random shifts and flips of training images, one draw per image, one gather per axis."""

import torch
from torch import Tensor

# The customary 4 pixels of a 32-pixel image; 3 of a 28-pixel digit.
SHIFT_SHARE = 1 / 8


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Shift, and perhaps flip, every image by its own random amount.

    Pixels that a shift brings in repeat the edge: black around a digit, more of the same
    in a photograph, where a black bar would be a mark that no test image has.

    Parameters
    ----------
    images : Tensor
        Any dtype and device, ``[B, C, H, W]``.
    kind : str
        ``"none"``, ``"shift"`` (up to an eighth of the side, both axes) or
        ``"shift-flip"`` (also left-right, every other image).
    generator : torch.Generator
        On the CPU, so that every device sees the same draws.

    Returns
    -------
    Tensor
        ``[B, C, H, W]``, same dtype and device.
    """
    if kind == "none":
        return images
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
