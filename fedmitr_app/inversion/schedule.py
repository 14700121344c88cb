"""Which patches go on being inverted, and from when on (ancestor: Sparse Model Inversion).

A schedule is asked once per stop which of the alive patches stay. ``dense`` never stops any;
``sparse`` keeps those the teacher attends to most; ``random`` keeps as many by chance (control);
``automatic`` finds their number too (choice; the paper leaves it to future work).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from fedmitr_app.config import InversionConfig


@dataclass(frozen=True)
class Schedule:
    """When to stop which share of the alive patches.

    Parameters
    ----------
    name : str
        ``dense``, ``sparse``, ``random`` or ``automatic``.
    stops : Mapping[int, float]
        Iteration -> share of the alive patches that stop before it; for ``automatic`` the share
        of their attention that may be lost with them.
    """

    name: str
    stops: Mapping[int, float]

    @classmethod
    def build(cls, config: InversionConfig) -> "Schedule":
        """Turn stop fractions (below 1) or counts into iterations.

        Stops that round to the same iteration fall on consecutive ones, so that a short
        run keeps the sequence of its shares.
        """
        if config.schedule == "dense" or not config.iterations:
            return cls(config.schedule, MappingProxyType({}))
        shares = config.drop * len(config.stops) if len(config.drop) == 1 else config.drop
        stops: dict[int, float] = {}
        earliest = 1
        for stop, share in zip(config.stops, shares, strict=True):
            at = int(stop) if stop >= 1 else round(stop * config.iterations)
            at = max(at, earliest)
            stops[at] = share
            earliest = at + 1
        return cls(config.schedule, MappingProxyType(stops))

    @property
    def needs_density(self) -> bool:
        """Whether :meth:`keep` looks at the density."""
        return self.name in ("sparse", "automatic")

    def counts(self, num_patches: int, iterations: int) -> list[int]:
        """Return how many patches are alive in each iteration.

        Raises
        ------
        ValueError
            For ``automatic``, which can't know before it has seen the images: its counts are
            those of :func:`~fedmitr_app.inversion.invert.invert_batch`'s ``alive`` curve.
        """
        if self.name == "automatic":
            raise ValueError("an automatic schedule finds its counts on the way")
        alive, counts = num_patches, []
        for iteration in range(iterations):
            if iteration in self.stops:
                alive = keep_count(alive, self.stops[iteration])
            counts.append(alive)
        return counts

    def keep(self, share: float, density: Tensor, generator: torch.Generator) -> Tensor:
        """Choose which alive patches stay when ``share`` of them stops.

        Parameters
        ----------
        share : float
            What the stop ends, in [0, 1): see ``stops``.
        density : Tensor
            ``[B, n]``, higher is more worth keeping; for ``random`` only its shape counts.
        generator : torch.Generator
            On the CPU.

        Returns
        -------
        Tensor
            ``[B, m]`` positions among the n alive ones, in increasing order.
        """
        if self.name == "random":
            drawn = torch.rand(density.shape, generator=generator)
            density = drawn.to(density.device, non_blocking=True)
        # argsort, keep the best, restore the spatial order  [B, n] -> [B, m]
        ranked = density.argsort(dim=1, descending=True, stable=True)
        if self.name == "automatic":
            count = _covering_count(density, 1 - share)
        else:
            count = keep_count(density.shape[1], share)
        return ranked[:, :count].sort(dim=1).values


def _covering_count(density: Tensor, cover: float) -> int:
    """How many patches hold ``cover`` of an image's density ``[B, n]``, the batch's mean.

    One number for the batch, so that its images still share one matrix product.
    """
    held = density.sort(dim=1, descending=True).values.double().cumsum(1)
    # The first few that hold that much: those before which less is held.
    short = held < cover * held[:, -1:] * (1 - 1e-9)
    return min(density.shape[1], round((short.sum(1) + 1).double().mean().item()))


def keep_count(alive: int, share: float) -> int:
    """How many of ``alive`` patches stay; rounds down as the reference (196 -> 137 -> 95)."""
    return max(1, math.floor(alive * (1 - share) + 1e-6))
