"""Total variation: the prior for images whose neighbouring pixels are alike.

Sum over four directions of the L2 norm of neighbour differences (Sparse Model Inversion, ICML
2024, takes one norm over the whole batch; here each image has its own, so that its gradient
doesn't depend on the others). Gradients are written out: autograd's detour costs as much as a
small client's whole pass once few patches are alive.
"""

from collections.abc import Iterator
from types import EllipsisType

import torch
from torch import Tensor

EPS = 1e-12
DIRECTIONS = ((1, 0), (0, 1), (1, -1), (1, 1))
"""Rows and columns from a pixel to the neighbour that it is compared with."""
Pixels = tuple[EllipsisType, slice, slice]
"""Some rows and columns of all images."""


def total_variation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the total variation of each image, and its gradient.

    Returns
    -------
    value, grad : Tensor
        ``[B]`` and ``[B, C, H, W]`` for images ``[B, C, H, W]``.
    """
    value, grad = images.new_zeros(len(images)), torch.zeros_like(images)
    for here, there in _neighbours(images):
        difference = images[here] - images[there]
        # Its square again, to add EPS: in one pass, where squares and their sum take two.
        norm = (torch.linalg.vector_norm(difference.flatten(1), dim=1).square() + EPS).sqrt()
        value += norm
        norm = norm.reshape(-1, 1, 1, 1)
        grad[here].addcdiv_(difference, norm)
        grad[there].addcdiv_(difference, norm, value=-1)
    return value, grad


def _neighbours(images: Tensor) -> Iterator[tuple[Pixels, Pixels]]:
    """Yield, for each direction, where the later and the earlier pixels of all pairs are."""
    height, width = images.shape[-2:]
    for down, right in DIRECTIONS:
        right, left = max(right, 0), max(-right, 0)
        yield (
            (..., slice(down, None), slice(right, width - left)),
            (..., slice(None, height - down), slice(left, width - right)),
        )
