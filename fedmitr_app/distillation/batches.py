"""Training batches from the pool: rolled and mirrored synthetic images (choice)."""

from typing import NamedTuple

import torch
from torch import Tensor

from fedmitr_app.config import DistillationConfig
from fedmitr_app.inversion.pool import PoolData
from fedmitr_app.inversion.views import RollFlip, apply_roll_flip, draw_roll_flip


class Batch(NamedTuple):
    """Images, each a view of one in the pool."""

    images: Tensor
    """Model input, ``[B, C, H, W]``."""
    mask: Tensor
    """Which patches survived the inversion, bool ``[B, N]``."""
    targets: Tensor
    """Pseudo-labels as class probabilities, ``[B, classes]``."""

    def part(self, rows: slice) -> "Batch":
        """Return some of the images."""
        return Batch(*(value[rows] for value in self))


class Recipe(NamedTuple):
    """How a batch is made of the pool: a few kilobytes, whatever the size of its images.

    Tensors on the CPU.
    """

    index: Tensor  # type: ignore[assignment]  # in the place of a tuple's own, which nobody calls
    """Which of the pool's images, ``[B]``."""
    roll_flip: RollFlip

    def make(self, pool: PoolData) -> Batch:
        """Make the batch, on the pool's device; the same every time."""
        device = pool.images.device
        index, roll_flip = self.index.to(device, non_blocking=True), self.roll_flip.to(device)
        images = pool.images[index]
        mask = view_mask(pool.mask[index], roll_flip, images.shape[-1])
        return Batch(apply_roll_flip(images, roll_flip), mask, pool.targets[index])


def draw_recipe(pool: PoolData, config: DistillationConfig, rng: torch.Generator) -> Recipe:
    """Draw a batch's images and their views; a pool may be smaller: images then repeat."""
    count, size = config.batch_size, pool.images.shape[-1]
    index = torch.randint(len(pool), (count,), generator=rng)
    return Recipe(index, draw_roll_flip(count, size, config.roll, config.flip, rng))


def draw_batch(pool: PoolData, config: DistillationConfig, rng: torch.Generator) -> Batch:
    """Draw a batch that is used once, see :func:`draw_recipe`."""
    return draw_recipe(pool, config, rng).make(pool)


def view_mask(mask: Tensor, roll_flip: RollFlip, size: int) -> Tensor:
    """Move a patch mask ``[B, N]`` along with its image, to the nearest whole patch."""
    grid = round(mask.shape[1] ** 0.5)
    patch = size // grid
    whole = RollFlip(
        torch.div(roll_flip.down + patch // 2, patch, rounding_mode="floor"),
        torch.div(roll_flip.right + patch // 2, patch, rounding_mode="floor"),
        roll_flip.flip,
    )
    return apply_roll_flip(mask.reshape(-1, 1, grid, grid), whole).flatten(1)
