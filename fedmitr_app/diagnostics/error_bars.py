"""How far the difference of two figures may be off, from the images or batches that made them.

The jackknife (Quenouille, 1956; Tukey, 1958): a figure is worked out again without each of its
parts in turn, and how much that moves it says how much other images would have. It draws nothing
and holds for every smooth function of means. A largest value is none, see :func:`of_largest`.
All this is about one run's images and batches: what another seed would give is not in it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.stats import t as student_t
from torch import Tensor

PARTS = 8
"""Where leaving out every image or batch by itself would cost too much (choice)."""
COVERAGE = 0.95


class Error(NamedTuple):
    """Of a difference."""

    size: float
    """Standard error; NaN if there were too few parts to know."""
    parts: int
    """Fewest that it comes from."""

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval, by Student's t; NaN if the error isn't known."""
        if self.parts < 2:
            return math.nan
        return self.size * float(student_t.ppf((1 + COVERAGE) / 2, self.parts - 1))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Error:
    """Return the error of ``ours - theirs``, both left out the same parts in turn."""
    differences = torch.tensor([ours, theirs], dtype=torch.float64)
    differences = differences[0] - differences[1]
    return Error(_jackknife(differences), len(differences))


def alone(left_out: Sequence[float]) -> Error:
    """Return the error of one figure, without each part in turn."""
    return Error(_jackknife(torch.tensor(left_out, dtype=torch.float64)), len(left_out))


def together(*errors: Error) -> Error:
    """Return the error of a sum of figures that have nothing to do with each other."""
    return Error(math.hypot(*(one.size for one in errors)), min(one.parts for one in errors))


def of_largest(largest: Sequence[float]) -> Error:
    """Return the error of the largest of all, given the largest value of each part.

    Where tails fall off exponentially the maximum over all parts spreads as much as that of one
    (the Gumbel law: more values move it without widening it), so that the deviation between the
    parts stands for it (choice). The jackknife isn't consistent for a maximum.
    """
    values = torch.tensor(largest, dtype=torch.float64)
    size = float(values.std()) if len(values) > 1 else math.nan
    return Error(size, len(values))


def without_each(values: Tensor) -> tuple[float, ...]:
    """Return the mean of values ``[n]`` without each of them in turn; NaN where none is left."""
    values = values.double()
    return tuple(((values.sum() - values) / (len(values) - 1)).tolist())


def part_means(values: Tensor, rng: torch.Generator) -> Tensor:
    """Return the mean of each of ``PARTS`` parts of values ``[n]``, dealt by chance.

    Fewer parts if there are fewer values. The same draws deal equally many values alike.
    """
    order = torch.randperm(len(values), generator=rng).to(values.device)
    parts = values[order].double().tensor_split(min(PARTS, len(values)))
    return torch.stack([part.mean() for part in parts])


def _jackknife(left_out: Tensor) -> float:
    count = len(left_out)
    if count < 2:
        return math.nan
    return math.sqrt((count - 1) / count * float((left_out - left_out.mean()).square().sum()))
