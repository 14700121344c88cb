"""Training batches from the pool: rolls, flips and mixup between synthetic images (choice)."""

from typing import NamedTuple

import torch
from torch import Tensor

from fedmitr_app.config import DistillationConfig
from fedmitr_app.inversion.geometry import Views, apply_view, draw_views
from fedmitr_app.inversion.pool import PoolData


class Batch(NamedTuple):
    """Images, and the one or two synthetic images that each was made of."""

    images: Tensor
    """Model input, ``[B, C, H, W]``."""
    parts: tuple[tuple[Tensor, Tensor, Tensor], ...]
    """For each part: its share ``[B]``, its mask ``[B, N]``, its targets ``[B, classes]``."""

    def part(self, rows: slice) -> "Batch":
        """Return some of the images, and what they were made of."""
        parts = tuple(tuple(value[rows] for value in part) for part in self.parts)
        return Batch(self.images[rows], parts)

    @property
    def targets(self) -> Tensor:
        """The mixed pseudo-labels, ``[B, classes]``."""
        return sum(share.unsqueeze(1) * targets for share, _, targets in self.parts)

    @property
    def token_targets(self) -> Tensor:
        """Each surviving patch's pseudo-label, mixed likewise, ``[B, N, classes]``.

        Made when it is needed: a kept batch holds the parts, a thousandth of its size for
        a thousand classes. Only ``relabel = "token"`` keeps something as large as this beside
        the batch, the ensemble's answer to each token.
        """
        return sum(
            share.reshape(-1, 1, 1) * mask.unsqueeze(2) * targets.unsqueeze(1)
            for share, mask, targets in self.parts
        )

    @property
    def background(self) -> Tensor:
        """Patches that survived in no part, ``[B, N]`` bool."""
        covered = self.parts[0][1]
        for _, mask, _ in self.parts[1:]:
            covered = covered | mask
        return ~covered


class Recipe(NamedTuple):
    """How a batch is made of the pool: a few kilobytes, whatever the size of its images.

    Tensors on the CPU.
    """

    parts: tuple[tuple[Tensor, Views], ...]
    """One or two: which of the pool's images, ``[B]``, and their views."""
    share: Tensor
    """Of the first part, ``[B]``."""

    def make(self, pool: PoolData) -> Batch:
        """Make the batch, on the pool's device; the same every time."""
        made = [_viewed(pool, index, views) for index, views in self.parts]
        share = self.share.to(pool.images.device, non_blocking=True)
        images, mask, targets = made[0]
        if len(made) == 1:
            return Batch(images, ((share, mask, targets),))
        other, other_mask, other_targets = made[1]
        weight = share.reshape(-1, 1, 1, 1)
        parts = ((share, mask, targets), (1 - share, other_mask, other_targets))
        return Batch(weight * images + (1 - weight) * other, parts)


def draw_recipe(pool: PoolData, config: DistillationConfig, rng: torch.Generator) -> Recipe:
    """Draw a batch's images; the pool may be smaller than the batch (images then repeat).

    Every image is a view of its own; with ``mixup`` above 0 it is blended with another one,
    with a share drawn from Beta(mixup, mixup).
    """
    count, size = config.batch_size, pool.images.shape[-1]

    def part() -> tuple[Tensor, Views]:
        index = torch.randint(len(pool), (count,), generator=rng)
        return index, draw_views(count, size, config.roll, config.flip, rng)

    if config.mixup == 0:
        return Recipe((part(),), torch.ones(count))
    return Recipe((part(), part()), _beta(config.mixup, count, rng))


def draw_batch(pool: PoolData, config: DistillationConfig, rng: torch.Generator) -> Batch:
    """Draw a batch that is used once, see :func:`draw_recipe`."""
    return draw_recipe(pool, config, rng).make(pool)


def _viewed(pool: PoolData, index: Tensor, views: Views) -> tuple[Tensor, Tensor, Tensor]:
    device = pool.images.device
    index, views = index.to(device, non_blocking=True), views.to(device)
    images, mask, targets = pool.images[index], pool.mask[index], pool.targets[index]
    return apply_view(images, views), view_mask(mask, views, images.shape[-1]), targets


def view_mask(mask: Tensor, views: Views, size: int) -> Tensor:
    """Move a patch mask ``[B, N]`` along with its image, to the nearest whole patch."""
    grid = round(mask.shape[1] ** 0.5)
    patch = size // grid
    whole = Views(
        torch.div(views.down + patch // 2, patch, rounding_mode="floor"),
        torch.div(views.right + patch // 2, patch, rounding_mode="floor"),
        views.flip,
    )
    return apply_view(mask.reshape(-1, 1, grid, grid), whole).flatten(1)


def _beta(alpha: float, count: int, rng: torch.Generator) -> Tensor:
    """Draw from Beta(alpha, alpha): torch's own sampler takes no generator for alpha != 1."""
    if alpha == 1:
        return torch.rand(count, generator=rng)
    concentration = torch.full((count, 2), float(alpha))
    gamma = torch._standard_gamma(concentration, generator=rng)
    return gamma[:, 0] / gamma.sum(1)
