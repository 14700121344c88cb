"""Where patches lie among an image's pixels: read them, write them."""

import torch
from torch import Tensor


def own_pixels(patch_idx: Tensor, size: int, patch_size: int) -> Tensor:
    """Return the flat pixel indices of the patches ``[B, n]`` themselves: ``[B, n, p*p]``."""
    grid = size // patch_size
    inside = torch.arange(patch_size, device=patch_idx.device)
    rows = (patch_idx // grid).unsqueeze(2) * patch_size + inside
    cols = (patch_idx % grid).unsqueeze(2) * patch_size + inside
    return flat_pixels(rows, cols, size)


def read_patches(images: Tensor, pixel_idx: Tensor) -> Tensor:
    """Gather the pixels ``[B, n, p*p]`` of images ``[B, C, H, W]``: ``[B, n, C*p*p]``."""
    pixels = gather_pixels(images, pixel_idx)
    return pixels.transpose(1, 2).flatten(2)


def write_patches(images: Tensor, patches: Tensor, pixel_idx: Tensor) -> None:
    """Write patches ``[B, n, C*p*p]`` in place, where :func:`read_patches` reads them."""
    channels = images.shape[1]
    pixels = patches.unflatten(2, (channels, -1)).transpose(1, 2).flatten(2)
    index = pixel_idx.flatten(1).unsqueeze(1).expand(-1, channels, -1)
    # A view, which raises where flatten would make a copy and write into that. Without -1, which
    # no images at all would leave undecided.
    images.view(*images.shape[:2], images.shape[2] * images.shape[3]).scatter_(2, index, pixels)


def flat_pixels(rows: Tensor, cols: Tensor, size: int) -> Tensor:
    """Combine each patch's rows and columns, ``[B, n, p]`` both: ``[B, n, p*p]``."""
    return (rows.unsqueeze(3) * size + cols.unsqueeze(2)).flatten(2)


def gather_pixels(images: Tensor, index: Tensor) -> Tensor:
    """Gather flat pixel indices ``[B, ...]`` from every channel: ``[B, C, ...]``."""
    channels = images.shape[1]
    flat = index.flatten(1).unsqueeze(1).expand(-1, channels, -1)
    gathered: Tensor = images.flatten(2).gather(2, flat).unflatten(2, index.shape[1:])
    return gathered
