"""Measure uploads' arrays against each other and against θ₀'s, one array at a time."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_MEDIAN = 0.3
"""A median slope that is lower tells nothing: little of θ₀ is left in anybody's array."""
MOST_DOUBT = 0.1
"""Likewise a slope whose standard error is larger, in the median client's array."""
_CHUNK = 2**22  # values of all uploads in float64 at once, 32 MiB: memory stays flat
_STATISTICS = ("running_mean", "running_var")


class ArrayStatistics(NamedTuple):
    """One array, or a third of one, of all voters: the K uploads, then θ₀."""

    name: str
    count: int  # type: ignore[assignment]  # in the place of a tuple's own, which nobody calls
    products: Tensor
    """``[V, V]``, float64: scalar products of their values."""
    peaks: Tensor
    """``[V]``: their largest magnitudes."""

    @property
    def sizes(self) -> Tensor:
        """Root mean squares ``[V]``."""
        return (self.products.diagonal() / self.count).sqrt()

    @property
    def weights(self) -> bool:
        """Whether they were trained, and are no statistics of data."""
        return not self.name.endswith(_STATISTICS)

    @property
    def slopes(self) -> Tensor | None:
        """Slopes of their values on θ₀'s, ``[V]``; None if those tell nothing."""
        start = float(self.products[-1, -1])
        if not self.weights or not start or median(self.sizes) > MOST_DOUBT * start**0.5:
            return None
        slopes = self.products[-1] / start
        return None if median(slopes) < LEAST_MEDIAN else slopes

    @property
    def steps(self) -> Tensor:
        """``[V, V]``: how far the voters are from each other; the last row, from θ₀."""
        squares = self.products.diagonal()
        return (squares[:, None] + squares - 2 * self.products).clamp_min(0).sqrt()

    def times(self, factors: Sequence[float]) -> "ArrayStatistics":
        """Return it with the K uploads' values multiplied."""
        each = torch.tensor([*factors, 1.0], dtype=torch.float64)
        return self._replace(products=self.products * each * each[:, None])


def parts_of(
    states: Sequence[Mapping[str, Tensor]], initial: Mapping[str, Tensor]
) -> Iterator[ArrayStatistics]:
    """Yield the measured arrays of all uploads, in θ₀'s order; queries, keys and values apart."""
    for name, start in initial.items():
        if not start.is_floating_point() or not start.numel():
            continue
        values = [state[name] for state in (*states, initial)]
        if not is_fused(name, start):
            yield _part(name, values)
            continue
        for letter, thirds in zip(
            "qkv", zip(*(value.chunk(3) for value in values), strict=True), strict=True
        ):
            yield _part(part_name(name, letter), thirds)


def is_fused(name: str, value: Tensor) -> bool:
    """Say whether an array is timm's of queries, keys and values, of which one may be swollen."""
    return name.endswith(("qkv.weight", "qkv.bias")) and len(value) % 3 == 0


def part_name(name: str, letter: str) -> str:
    """Return the name of a fused array's queries ("q"), keys ("k") or values ("v")."""
    return letter.join(name.rsplit("qkv", 1))


def _part(name: str, values: Sequence[Tensor]) -> ArrayStatistics:
    products = torch.zeros(len(values), len(values), dtype=torch.float64)
    peaks = torch.zeros(len(values), dtype=torch.float64)
    width = max(1, _CHUNK // len(values))
    for rows in zip(*(value.flatten().split(width) for value in values), strict=True):
        piece = torch.stack(rows).double()
        products += piece @ piece.T
        peaks = torch.maximum(peaks, piece.abs().amax(1))
    return ArrayStatistics(name, values[0].numel(), products, peaks)


def median(values: Tensor) -> float:
    """Return the higher median: half of the voters may be too small, or lie."""
    return float(statistics.median_high(values.tolist()))
