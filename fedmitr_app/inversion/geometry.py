"""Per-image rolls and flips, exact on a subset of patches.

A view of an image is a roll by whole pixels followed by an optional mirror. On the whole
image it is :func:`apply_view`. On a subset of patches, :func:`viewed_pixels` splits each
offset into whole patches, which only move the position index, and a rest of at most half
a patch, by which the patch's window is shifted: it reads some pixels of its neighbours,
frozen ones included. What is read there are exactly the patches of the whole view. Indices
of pixels instead of pixels: the way back, of a gradient, is then a plain write.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Views(NamedTuple):
    """One roll and flip per image, each ``[B]``."""

    down: Tensor
    """Rows by which the image rolls down, in pixels."""
    right: Tensor
    """Columns by which it rolls to the right, in pixels."""
    flip: Tensor
    """Whether it is mirrored left to right after the roll."""

    def to(self, device: torch.device) -> "Views":
        """Move to a device, which is not waited for."""
        return Views(*(part.to(device, non_blocking=True) for part in self))


def draw_views(
    batch: int, size: int, roll: float, flip: float, generator: torch.Generator
) -> Views:
    """Draw views on the CPU: rolls up to ``±roll * size`` pixels, mirrored with chance ``flip``."""
    reach = int(roll * size)
    offsets = torch.randint(-reach, reach + 1, (2, batch), generator=generator)
    return Views(offsets[0], offsets[1], torch.rand(batch, generator=generator) < flip)


def apply_view(images: Tensor, views: Views) -> Tensor:
    """Roll and flip whole images ``[B, C, H, W]``."""
    size = images.shape[-1]
    axis = torch.arange(size, device=images.device)
    rows = (axis - views.down.unsqueeze(1)) % size
    cols = torch.where(views.flip.unsqueeze(1), size - 1 - axis, axis)
    cols = (cols - views.right.unsqueeze(1)) % size
    return _gather_pixels(images, rows.unsqueeze(2) * size + cols.unsqueeze(1))


def viewed_pixels(
    alive_idx: Tensor, views: Views, size: int, patch_size: int
) -> tuple[Tensor, Tensor]:
    """Return where the patches of the viewed images that show the alive ones get their pixels.

    The windows of one image never overlap: all are shifted alike.

    Parameters
    ----------
    alive_idx : Tensor
        Indices of alive patches in the images themselves, ``[B, n]``.
    views : Views
        One per image.
    size, patch_size : int
        Sides of an image and of a patch, in pixels.

    Returns
    -------
    pixel_idx : Tensor
        Flat indices into an image's pixels, ``[B, n, p*p]``, in the order of ``alive_idx``.
    position_idx : Tensor
        Where each patch stands in the viewed image, ``[B, n]``.
    """
    grid = size // patch_size
    row, col = alive_idx // grid, alive_idx % grid
    move_down, rest_down = _split(views.down, patch_size)
    move_right, rest_right = _split(views.right, patch_size)
    flip = views.flip.unsqueeze(1)

    inside = torch.arange(patch_size, device=alive_idx.device)
    # [B, n, p]: source rows and columns of each window, wrapping around the image.
    rows = (row.unsqueeze(2) * patch_size + inside - rest_down.reshape(-1, 1, 1)) % size
    across = torch.where(flip.unsqueeze(2), patch_size - 1 - inside, inside)
    cols = (col.unsqueeze(2) * patch_size + across - rest_right.reshape(-1, 1, 1)) % size

    new_row = (row + move_down.unsqueeze(1)) % grid
    new_col = (col + move_right.unsqueeze(1)) % grid
    new_col = torch.where(flip, grid - 1 - new_col, new_col)
    return _flat(rows, cols, size), new_row * grid + new_col


def own_pixels(patch_idx: Tensor, size: int, patch_size: int) -> Tensor:
    """Return the flat pixel indices of the patches ``[B, n]`` themselves: ``[B, n, p*p]``."""
    return _flat(*_rows_and_cols(patch_idx, size, patch_size), size)


def window_pixels(patch_idx: Tensor, size: int, patch_size: int) -> tuple[Tensor, Tensor]:
    """Return where patches ``[B, n]`` and a pixel all around them get their pixels.

    Returns
    -------
    pixel_idx : Tensor
        ``[B, n, (p+2)*(p+2)]``; beyond a border of the image some pixel of it.
    inside : Tensor
        Which of them are pixels of the image, bool ``[B, n, p+2, p+2]``.
    """
    rows, cols = _rows_and_cols(patch_idx, size, patch_size, margin=1)
    within, across = ((0 <= axis) & (axis < size) for axis in (rows, cols))
    pixels = _flat(rows.clamp(0, size - 1), cols.clamp(0, size - 1), size)
    return pixels, within.unsqueeze(3) & across.unsqueeze(2)


def read_patches(images: Tensor, pixel_idx: Tensor) -> Tensor:
    """Gather the pixels ``[B, n, p*p]`` of images ``[B, C, H, W]``: ``[B, n, C*p*p]``."""
    pixels = _gather_pixels(images, pixel_idx)
    return pixels.transpose(1, 2).flatten(2)


def write_patches(images: Tensor, patches: Tensor, pixel_idx: Tensor) -> None:
    """Write patches ``[B, n, C*p*p]`` in place, where :func:`read_patches` reads them."""
    channels = images.shape[1]
    pixels = patches.unflatten(2, (channels, -1)).transpose(1, 2).flatten(2)
    index = pixel_idx.flatten(1).unsqueeze(1).expand(-1, channels, -1)
    # A view, which raises where flatten would make a copy and write into that. Without -1, which
    # no images at all would leave undecided.
    images.view(*images.shape[:2], images.shape[2] * images.shape[3]).scatter_(2, index, pixels)


def _rows_and_cols(
    patch_idx: Tensor, size: int, patch_size: int, margin: int = 0
) -> tuple[Tensor, Tensor]:
    """Return each patch's rows and columns, so many more on either side: ``[B, n, p+2*margin]``."""
    grid = size // patch_size
    along = torch.arange(-margin, patch_size + margin, device=patch_idx.device)
    rows = (patch_idx // grid).unsqueeze(2) * patch_size + along
    cols = (patch_idx % grid).unsqueeze(2) * patch_size + along
    return rows, cols


def _flat(rows: Tensor, cols: Tensor, size: int) -> Tensor:
    """Combine each patch's rows and columns, ``[B, n, p]`` both: ``[B, n, p*p]``."""
    return (rows.unsqueeze(3) * size + cols.unsqueeze(2)).flatten(2)


def _split(offset: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Split pixel offsets into whole patches and a rest within half a patch."""
    whole = torch.div(offset + patch_size // 2, patch_size, rounding_mode="floor")
    return whole, offset - whole * patch_size


def _gather_pixels(images: Tensor, index: Tensor) -> Tensor:
    """Gather flat pixel indices ``[B, ...]`` from every channel: ``[B, C, ...]``."""
    channels = images.shape[1]
    flat = index.flatten(1).unsqueeze(1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, flat).unflatten(2, index.shape[1:])
