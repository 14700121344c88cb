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
  scaled has another, what was put in another order none.
- Its root mean square, and its largest magnitude, are at most ``MOST_SIZE`` and ``MOST_PEAK``
  times the median's, and the first no smaller than a ``MOST_SIZE``-th. Arrays that are all but
  zero, as biases are at first, are compared with ``FLOOR`` of the whole model's.

An array that was scaled as a whole is scaled back to the median's slope, or size, before it is
averaged; whose arrays are out of bounds otherwise is in no average. Of two that are the same but
for noise averages take the first.

θ₀ has a vote in every median, so that of two clients the one that stayed near it is right.
What averages take is then of others' sizes and in their order, not good: who flips the training's
step, or stays within the limits, is in. Measured in docs/reliability.md.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from fedmitr_app.uploads.averaging import average
from fedmitr_app.uploads.upload import Upload

LEAST_SLOPE, MOST_SLOPE = 0.5, 5.0
MOST_SIZE, MOST_PEAK = 10.0, 20.0
FLOOR = 0.5
LEAST_MEDIAN = 0.3
"""A median slope that is lower tells nothing: little of θ₀ is left in anybody's array."""
MOST_DOUBT = 0.1
"""Likewise a slope whose standard error is larger, in the median client's array."""
LEAST_KEPT = 0.25
"""Correlation with θ₀ from which an array was scaled; below, it was put in another order."""
COPIED = 0.05
"""Of a training's step: two clients that are nearer than that did not train apart."""
ROUNDING = 1e-6
"""Of an array's length: differences that are smaller are none."""
_CHUNK = 2**22  # values of all uploads in float64 at once, 32 MiB: memory stays flat
_TINY = 1e-30


class Weighed(NamedTuple):
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
    def reasons(self) -> list[str]:
        """Say what is found, if anything."""
        found = []
        if self.unfit:
            found.append(f"{self.unfit}, so that no average of weights takes it")
        elif self.scaled:
            found.append(f"{self.scaled}, so that averages of weights scale it back")
        if self.alike:
            found.append(f"most of its arrays are {self.alike!r}'s: they did not train apart")
        return found


class _Part(NamedTuple):
    """One array, or a third of one, of all voters: the K uploads, then θ₀."""

    name: str
    count: int
    products: Tensor
    """``[V, V]``, float64: scalar products of their values."""
    peaks: Tensor
    """``[V]``: their largest magnitudes."""

    @property
    def sizes(self) -> Tensor:
        """Root mean squares ``[V]``."""
        return (self.products.diagonal() / self.count).sqrt()

    @property
    def slopes(self) -> Tensor | None:
        """Slopes of their values on θ₀'s, ``[V]``; None if those are too few, or too small."""
        start = float(self.products[-1, -1])
        if not start or _median(self.sizes) > MOST_DOUBT * start**0.5:
            return None
        return self.products[-1] / start

    @property
    def steps(self) -> Tensor:
        """``[V, V]``: how far the voters are from each other; the last row, from θ₀."""
        squares = self.products.diagonal()
        return (squares[:, None] + squares - 2 * self.products).clamp_min(0).sqrt()

    def times(self, factors: Sequence[float]) -> "_Part":
        """Return it with the K uploads' values multiplied."""
        each = torch.tensor([*factors, 1.0], dtype=torch.float64)
        return self._replace(products=self.products * each * each[:, None])


def compare(uploads: Sequence[Upload], initial: Mapping[str, Tensor]) -> list[Weighed]:
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
        return [Weighed()] * len(uploads)
    parts = list(_parts([load_file(upload.weights) for upload in uploads], initial))
    if not parts:
        return [Weighed()] * len(uploads)
    squares = sum(part.products.diagonal() for part in parts)
    floor = FLOOR * _median((squares / sum(part.count for part in parts)).sqrt())
    unfit, scaled = [""] * len(uploads), [""] * len(uploads)
    factors: list[dict[str, float]] = [{} for _ in uploads]
    for part in parts:
        for client, reason, factor in _misfits(part, floor):
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
    return [Weighed(*each) for each in zip(unfit, names, scaled, pairs, strict=True)]


def average_fit(
    uploads: Sequence[Upload],
    weighed: Sequence[Weighed],
    initial: Mapping[str, Tensor],
    weights: str = "num-examples",
) -> dict[str, Tensor]:
    """Average the uploads that can be, as :func:`average` does; θ₀ if there are none.

    What was scaled is scaled back; of honest uploads it is the plain average to the last bit.
    """
    factors = {
        upload.client: dict(found.factors)
        for upload, found in zip(uploads, weighed, strict=True)
        if not found.unfit
    }
    fit = [upload for upload in uploads if upload.client in factors]
    if not fit:
        return dict(initial)
    return average(fit, weights, lambda *array: _scaled_back(*array, factors))


def _scaled_back(
    upload: Upload, name: str, value: Tensor, factors: Mapping[str, Mapping[str, float]]
) -> Tensor:
    own = factors[upload.client]
    if not own:
        return value
    if not _is_fused(name, value):
        return value * own.get(name, 1.0)
    thirds = zip("qkv", value.chunk(3))
    return torch.cat([third * own.get(_part_name(name, letter), 1.0) for letter, third in thirds])


def _misfits(part: _Part, floor: float) -> Iterator[tuple[int, str, float | None]]:
    """Yield clients whose array is out of bounds, why, and what it is to be multiplied by.

    None if that is no matter of scale.
    """
    usual_size, usual_peak = (max(_median(x), floor, _TINY) for x in (part.sizes, part.peaks))
    slopes, usual = part.slopes, 0.0
    if slopes is not None and (usual := _median(slopes)) < LEAST_MEDIAN:
        slopes = None
    for client, (size, peak) in enumerate(zip(part.sizes[:-1].tolist(), part.peaks.tolist())):
        reason, factor = "", _median(part.sizes) / max(size, _TINY)
        if slopes is not None:
            slope = float(slopes[client])
            start = float(part.sizes[-1])
            kept = slope * start / max(size, _TINY)
            factor = usual / slope if kept >= LEAST_KEPT else None
            if not LEAST_SLOPE * usual <= slope <= MOST_SLOPE * usual:
                reason = (
                    f"its {part.name} holds {slope:.3g} times the initial one where the median's "
                    f"holds {usual:.3g}: it was scaled, or put in another order"
                )
        for what, ratio, limit in (
            ("largest value", peak / usual_peak, MOST_PEAK),
            ("root mean square", size / usual_size, MOST_SIZE),
        ):
            too_small = what == "root mean square" and ratio < 1 / limit and usual_size > floor
            if ratio > limit or too_small:
                reason = f"the {what} of its {part.name} is {ratio:.3g} times the median's"
        if reason:
            peaks = factor is not None and peak * factor > MOST_PEAK * usual_peak
            yield client, reason, None if peaks else factor


def _copies(parts: Sequence[_Part]) -> tuple[list[list[int]], list[list[int]]]:
    """Return whose copies each client's whole model is, and most arrays that both trained."""
    clients = len(parts[0].peaks) - 1
    trained, shared = torch.zeros(2, clients, clients)
    apart, step = torch.zeros(2, clients, clients, dtype=torch.float64)
    for part in parts:
        steps = part.steps
        steps = steps * (steps > ROUNDING * part.products[-1, -1].sqrt())
        between, least = steps[:-1, :-1], torch.minimum(steps[-1, :-1, None], steps[-1, :-1])
        trained += least > 0
        shared += (least > 0) & (between < COPIED * least)
        apart += between**2
        step += least**2
    found = (apart < COPIED**2 * step), (shared > trained / 2)
    same, alike = (
        [row.nonzero().flatten().tolist() for row in each.fill_diagonal_(False)] for each in found
    )
    return same, alike


def _parts(
    states: Sequence[Mapping[str, Tensor]], initial: Mapping[str, Tensor]
) -> Iterator[_Part]:
    for name, start in initial.items():
        if not start.is_floating_point() or not start.numel():
            continue
        values = [state[name] for state in (*states, initial)]
        if not _is_fused(name, start):
            yield _part(name, values)
            continue
        for letter, thirds in zip("qkv", zip(*(value.chunk(3) for value in values))):
            yield _part(_part_name(name, letter), thirds)


def _is_fused(name: str, value: Tensor) -> bool:
    # timm keeps queries, keys and values in one array, of which one third may be swollen.
    return name.endswith(("qkv.weight", "qkv.bias")) and len(value) % 3 == 0


def _part_name(name: str, letter: str) -> str:
    return letter.join(name.rsplit("qkv", 1))


def _part(name: str, values: Sequence[Tensor]) -> _Part:
    products = torch.zeros(len(values), len(values), dtype=torch.float64)
    peaks = torch.zeros(len(values), dtype=torch.float64)
    width = max(1, _CHUNK // len(values))
    for rows in zip(*(value.flatten().split(width) for value in values)):
        piece = torch.stack(rows).double()
        products += piece @ piece.T
        peaks = torch.maximum(peaks, piece.abs().amax(1))
    return _Part(name, values[0].numel(), products, peaks)


def _median(values: Tensor) -> float:
    """Return the higher median: half of the voters may be too small, or lie."""
    return statistics.median_high(values.tolist())
