"""Total variation: the prior for images whose neighbouring pixels are alike.

Sum over four directions of the L2 norm of neighbour differences (Sparse Model Inversion, ICML
2024, takes one norm over the whole batch; here each image has its own, so that its gradient
doesn't depend on the others). Gradients are written out: autograd's detour costs as much as a
small client's whole pass once few patches are alive.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fedmitr_app.inversion.geometry import read_patches, window_pixels, write_patches

EPS = 1e-12
DIRECTIONS = ((1, 0), (0, 1), (1, -1), (1, 1))
"""Rows and columns from a pixel to the neighbour that it is compared with."""
WINDOWED_BELOW = 0.35
"""Moving patches and what surrounds them are looked at alone where they are a smaller share of an
image's pixels (measured on a CPU: at 0.3 that takes 0.3 to 0.7 of the time, at 0.6 it takes
longer; a GPU's threshold is the same, unmeasured)."""


def total_variation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Total variation of each image, and its gradient.

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


Variation = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Gives for images, of which some patches move, the value ``[B]`` and its slope at these,
``[B, n, C*p*p]``."""


def variation_of(images: Tensor, alive: Tensor, own: Tensor, patch_size: int) -> Variation:
    """Return the quicker way where some patches of ``images`` ``[B, C, H, W]`` move.

    ``alive`` are these, ``[B, n]``, and ``own`` are their pixels (``geometry.own_pixels``).
    """
    looked_at = alive.shape[1] * (patch_size + 2) ** 2
    if looked_at <= WINDOWED_BELOW * images.shape[-1] ** 2:
        return WindowedVariation(images, alive, own, patch_size)
    return WholeVariation(own)


class WholeVariation:
    """Total variation from all pixels of the images."""

    def __init__(self, own: Tensor) -> None:
        self._own = own

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :data:`Variation`."""
        value, slope = total_variation(images)
        return value, read_patches(slope, self._own)


class WindowedVariation:
    """The same, from the moving patches and the pixels around them alone.

    In each direction the squared norm is ``x . Lx``, L a graph's Laplacian: ``(Lx)_i`` is the sum
    of pixel i's differences with its two neighbours (one, at a border), and the slope is ``Lx``
    over the norm. With moving pixels m and stopped ones s, ``x . Lx = s . Ls + m . (Lm + 2 Ls)``,
    and ``Ls`` is counted once, at the beginning. So must it be: only the moving patches of
    ``images`` may change between calls.
    """

    def __init__(self, images: Tensor, alive: Tensor, own: Tensor, patch_size: int) -> None:
        self._patch = patch_size
        self._windows, inside = window_pixels(alive, images.shape[-1], patch_size)
        self._inside = inside.to(images.dtype).unsqueeze(2)  # [B, n, 1, p+2, p+2]
        degrees = [self._pair_sum(self._inside, direction) for direction in DIRECTIONS]
        self._degrees = torch.stack(degrees)  # [4, B, n, 1, p, p]: how many neighbours there are
        stopped = images.clone()
        write_patches(stopped, torch.zeros_like(read_patches(images, own)), own)
        self._stopped_slopes = self._slopes(stopped)[1]  # Ls, [4, B, n*C*p*p]
        squares = [
            (stopped[here] - stopped[there]).flatten(1).square().sum(1)
            for here, there in _neighbours(stopped)
        ]
        self._stopped_squares = torch.stack(squares)  # s . Ls, [4, B]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :data:`Variation`."""
        pixels, slopes = self._slopes(images)
        # m . Lx + m . Ls = m . (Lm + 2 Ls)
        # Element by element: as matrix products (einsum) they take a CPU five times as long.
        moving, touching = ((of * pixels).sum(2) for of in (slopes, self._stopped_slopes))
        squares = self._stopped_squares + moving + touching
        norms = (squares.clamp_min(0) + EPS).sqrt()
        slope = slopes.mul_(norms.reciprocal().unsqueeze(2)).sum(0)
        return norms.sum(0), slope.unflatten(1, (self._windows.shape[1], -1))

    def _slopes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moving pixels ``[B, n*C*p*p]``, and ``Lx`` there, ``[4, B, n*C*p*p]``."""
        windows = read_patches(images, self._windows)
        windows = windows.unflatten(2, (images.shape[1], *self._inside.shape[-2:])) * self._inside
        pixels = self._shifted(windows, 0, 0)
        slopes = pixels.new_empty(len(DIRECTIONS), *pixels.shape)
        for slope, degree, direction in zip(slopes, self._degrees, DIRECTIONS, strict=True):
            torch.mul(pixels, degree, out=slope)
            slope -= self._pair_sum(windows, direction)
        return pixels.flatten(1), slopes.flatten(2)

    def _pair_sum(self, windows: Tensor, direction: tuple[int, int]) -> Tensor:
        down, right = direction
        return self._shifted(windows, down, right) + self._shifted(windows, -down, -right)

    def _shifted(self, windows: Tensor, down: int, right: int) -> Tensor:
        rows, cols = (slice(1 + by, 1 + by + self._patch) for by in (down, right))
        return windows[..., rows, cols]


def _neighbours(images: Tensor) -> Iterator[tuple[tuple, tuple]]:
    """Yield, for each direction, where the later and the earlier pixels of all pairs are."""
    height, width = images.shape[-2:]
    for down, right in DIRECTIONS:
        right, left = max(right, 0), max(-right, 0)
        yield (
            (..., slice(down, None), slice(right, width - left)),
            (..., slice(None, height - down), slice(left, width - right)),
        )
