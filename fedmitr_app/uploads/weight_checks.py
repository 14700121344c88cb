"""Judge uploads' weights against each other and against θ₀: which of them averages may take.

A Vision Transformer has many sets of weights that compute the same function: norms scaled up and
the maps behind them down, queries against keys, hidden units in another order. What a model
answers tells nothing of that, and its weights ruin any average with others (Ainsworth et al.,
"Git Re-Basin", ICLR 2023). Clients that were honestly trained from the same θ₀ share its place
among those sets, and sizes that are alike (choice; each array by itself, queries, keys and values
apart):

- Of θ₀ each array holds about once: the regression of its values on θ₀'s has a slope of
  ``LEAST_SLOPE`` to ``MOST_SLOPE`` times the median's. Training adds to θ₀ what hardly lies along
  it, so that honest slopes are near 1, also where learning rates are 30 times apart; what was
  scaled has another, what was put in another order none. Weight decay alone takes θ₀ away, from
  all arrays of a client alike: the lower bound is of what the client's usual array still holds.
- Its root mean square, and its largest magnitude, are at most ``MOST_SIZE`` and ``MOST_PEAK``
  times the median's, and the first no smaller than a ``MOST_SIZE``-th. Arrays that are all but
  zero, as biases are at first, are compared with ``FLOOR`` of the whole model's.

An array that was scaled as a whole is scaled back to the median's slope, or size, before it is
averaged; whose arrays are out of bounds otherwise is in no average. Of two that are the same but
for noise averages take the first.

θ₀ has a vote in every median, so that of two clients the one that stayed near it is right.
What averages take is then of others' sizes and in their order, not good: who flips the training's
step, or stays within the limits, is in. Measured in docs/results/attacks.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from fedmitr_app.uploads.array_statistics import ArrayStatistics, median, parts_of
from fedmitr_app.uploads.class_means import HEAD, read_class_means
from fedmitr_app.uploads.upload import Upload

LEAST_SLOPE, MOST_SLOPE = 0.5, 5.0
MOST_DECAYED = 0.1
"""Less than so much of θ₀ nobody's decay leaves: it would take all that a long training learns."""
MOST_SIZE, MOST_PEAK = 10.0, 20.0
FLOOR = 0.5
LEAST_KEPT = 0.25
"""Correlation with θ₀ from which an array was scaled; below, it was put in another order."""
COPIED = 1e-3
"""Of a training's step: two clients that are nearer than that did not train apart.

The nearest honest ones that are known are 0.03 apart: heads alone, fitted to the same two classes.
"""
ROUNDING = 1e-6
"""Of an array's length: differences that are smaller are none."""
_TINY = 1e-30


class WeightCheck(NamedTuple):
    """What one upload's weights say of it."""

    unfit: str = ""
    """Why averages leave them out; empty for those that they take."""
    alike: str = ""
    """The key of another upload that shares most of its arrays; of several, of one that is fit."""
    scaled: str = ""
    """Why averages multiply some arrays; empty if they multiply none."""
    factors: tuple[tuple[str, float], ...] = ()
    """By what, after the array's name; queries, keys and values have names of their own."""

    @property
    def suspicious(self) -> bool:
        """Whether no honest training ends in such weights."""
        return bool(self.unfit or self.scaled)

    @property
    def findings(self) -> list[str]:
        """Say what is found, if anything."""
        whose = self.alike and f"most of its arrays are {self.alike!r}'s: they did not train apart"
        return [each for each in (self.unfit or self.scaled, whose) if each]

    @property
    def reasons(self) -> list[str]:
        """Say what is found, and what averages do about it."""
        found = self.findings
        done = "no average of weights takes it"
        if not self.unfit:
            done = "averages of weights scale it back"
        return [f"{found[0]}, so that {done}", *found[1:]] if self.suspicious else found


def check_weights(uploads: Sequence[Upload], initial: Mapping[str, Tensor]) -> list[WeightCheck]:
    """Judge each upload's weights.

    Reads them one array at a time. A single upload has nobody to be compared with.

    Parameters
    ----------
    uploads : Sequence[Upload]
        In the order of their keys, all with θ₀'s names and shapes.
    initial : Mapping[str, Tensor]
        θ₀'s state dict, on the CPU.
    """
    if len(uploads) < 2:
        return [WeightCheck()] * len(uploads)
    states = [load_file(upload.weights) for upload in uploads]
    parts = list(parts_of(states, initial))
    if not parts:
        return [WeightCheck()] * len(uploads)
    nothing = torch.zeros((), dtype=torch.float64)
    squares = sum((part.products.diagonal() for part in parts), nothing)
    floor = FLOOR * median((squares / sum(part.count for part in parts)).sqrt())
    unfit, scaled = [""] * len(uploads), [""] * len(uploads)
    factors: list[dict[str, float]] = [{} for _ in uploads]
    decayed, believed = _decayed(parts), set()
    if initial.keys() >= {*HEAD}:
        read = read_class_means(states, initial)
        believed = {client for client, one in enumerate(read) if one is not None}
    for part in parts:
        for client, reason, factor in _misfits(part, floor, decayed):
            if part.name in HEAD and client in believed:  # its sizes go with classes' shares
                continue
            if factor is None:
                unfit[client] = unfit[client] or reason
            else:
                scaled[client] = scaled[client] or reason
                factors[client][part.name] = factor
    same, alike = _copies(
        [part.times([own.get(part.name, 1.0) for own in factors]) for part in parts]
    )
    for client, others in enumerate(same):
        if others and others[0] < client:
            copy = f"its weights are those of {uploads[others[0]].client!r} but for noise"
            unfit[client] = unfit[client] or copy
    # Sorted by whether they are unfit: of a copy and its copies the one to be named is fit.
    firsts = [min(others, key=lambda other: bool(unfit[other]), default=None) for others in alike]
    names = ["" if first is None else uploads[first].client for first in firsts]
    pairs = [tuple(own.items()) for own in factors]
    return [WeightCheck(*each) for each in zip(unfit, names, scaled, pairs, strict=True)]


def _decayed(parts: Sequence[ArrayStatistics]) -> list[float]:
    """Return how much of θ₀ each client's usual value still holds, at most all of it.

    The median over values, not arrays: those of norms are many, small, and often not decayed.
    """
    told = [
        (part.count, slopes / median(slopes))
        for part in parts
        if (slopes := part.slopes) is not None
    ]
    if not told:
        return [1.0] * (len(parts[0].peaks) - 1)
    counts = torch.tensor([float(count) for count, _ in told])
    found = []
    for held in torch.stack([ratios for _, ratios in told], 1)[:-1]:
        order = held.argsort()
        middle = int((counts[order].cumsum(0) < counts.sum() / 2).sum())
        found.append(min(max(float(held[order[middle]]), MOST_DECAYED), 1.0))
    return found


def _misfits(
    part: ArrayStatistics, floor: float, decayed: Sequence[float]
) -> Iterator[tuple[int, str, float | None]]:
    """Yield clients whose array is out of bounds, why, and what it is to be multiplied by.

    None if that is no matter of scale.
    """
    slopes, median_size = part.slopes, median(part.sizes)
    usual_size, usual_peak = (max(x, floor, _TINY) for x in (median_size, median(part.peaks)))
    usual = 0.0 if slopes is None else median(slopes)
    *sizes, start = part.sizes.tolist()
    for client, (size, peak) in enumerate(zip(sizes, part.peaks[:-1].tolist(), strict=True)):
        reason, factor = "", median_size / max(size, _TINY)
        if slopes is not None:
            slope = float(slopes[client])
            kept = slope * start / max(size, _TINY)
            factor = usual / slope if kept >= LEAST_KEPT else None
            if not LEAST_SLOPE * usual * decayed[client] <= slope <= MOST_SLOPE * usual:
                reason = (
                    f"its {part.name} holds {slope:.3g} times the initial one where the median's "
                    f"holds {usual:.3g}: it was scaled, or put in another order"
                )
        ratio = peak / usual_peak
        if ratio > MOST_PEAK:
            reason = f"the largest value of its {part.name} is {ratio:.3g} times the median's"
        ratio = size / usual_size
        # Who hardly trained what began as zeros, as the head's bias, has a small one.
        too_small = ratio < 1 / MOST_SIZE and usual_size > floor and size < start
        if part.weights and (ratio > MOST_SIZE or too_small):
            reason = f"the root mean square of its {part.name} is {ratio:.3g} times the median's"
        if reason:
            peaks = factor is not None and peak * factor > MOST_PEAK * usual_peak
            yield client, reason, None if peaks else factor


def _copies(parts: Sequence[ArrayStatistics]) -> tuple[list[list[int]], list[list[int]]]:
    """Return whose copies each client's whole model is, and most values that both trained."""
    clients = len(parts[0].peaks) - 1
    trained, shared, apart, step = torch.zeros(4, clients, clients, dtype=torch.float64)
    for part in (part for part in parts if part.weights):
        steps = part.steps
        steps = steps * (steps > ROUNDING * part.products[-1, -1].sqrt())
        between, least = steps[:-1, :-1], torch.minimum(steps[-1, :-1, None], steps[-1, :-1])
        trained += part.count * (least > 0)
        shared += part.count * ((least > 0) & (between < COPIED * least))
        apart += between**2
        step += least**2
    found = (apart < COPIED**2 * step), (shared > trained / 2)
    same, alike = (
        [row.nonzero().flatten().tolist() for row in each.fill_diagonal_(False)] for each in found
    )
    return same, alike
