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
  times the median's. Arrays that are all but zero, as biases are at first, are compared with
  ``FLOOR`` of the whole model's root mean square.

Of two that are the same but for noise averages take the first.

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

from fedmitr_app.uploads.upload import Upload

LEAST_SLOPE, MOST_SLOPE = 0.5, 5.0
MOST_SIZE, MOST_PEAK = 10.0, 20.0
FLOOR = 0.5
LEAST_MEDIAN = 0.3
"""A median slope that is lower tells nothing: little of θ₀ is left in anybody's array."""
MOST_DOUBT = 0.1
"""Likewise a slope whose standard error is larger, in the median client's array."""
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

    @property
    def reasons(self) -> list[str]:
        """Say what is found, if anything."""
        found = []
        if self.unfit:
            found.append(f"{self.unfit}, so that no average of weights takes it")
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
        start = self.products[-1, -1]
        doubt = _median(self.sizes) / max(float(start.sqrt()), _TINY)
        return None if doubt > MOST_DOUBT else self.products[-1] / start

    @property
    def steps(self) -> Tensor:
        """``[V, V]``: how far the voters are from each other; the last row, from θ₀."""
        squares = self.products.diagonal()
        return (squares[:, None] + squares - 2 * self.products).clamp_min(0).sqrt()


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
    unfit = [""] * len(uploads)
    for part in parts:
        for client, reason in _misfits(part, floor):
            unfit[client] = unfit[client] or reason
    same, alike = _copies(parts)
    for client, others in enumerate(same):
        if others and others[0] < client:
            copy = f"its weights are those of {uploads[others[0]].client!r} but for noise"
            unfit[client] = unfit[client] or copy
    # Sorted by whether they are unfit: of a copy and its copies the one to be named is fit.
    firsts = [min(others, key=lambda other: bool(unfit[other]), default=None) for others in alike]
    return [
        Weighed(reason, "" if first is None else uploads[first].client)
        for reason, first in zip(unfit, firsts, strict=True)
    ]


def _misfits(part: _Part, floor: float) -> Iterator[tuple[int, str]]:
    """Yield clients whose array averages can't take, and why."""
    for what, values, limit in (
        ("root mean square", part.sizes, MOST_SIZE),
        ("largest value", part.peaks, MOST_PEAK),
    ):
        ratios = values[:-1] / max(_median(values), floor, _TINY)
        for client in (ratios > limit).nonzero().flatten().tolist():
            yield client, (
                f"the {what} of its {part.name} is {ratios[client]:.3g} times the median's"
            )
    slopes = part.slopes
    if slopes is None or (usual := _median(slopes)) < LEAST_MEDIAN:
        return
    least, most = LEAST_SLOPE * usual, MOST_SLOPE * usual
    for client in ((slopes < least) | (slopes > most))[:-1].nonzero().flatten().tolist():
        yield client, (
            f"its {part.name} holds {slopes[client]:.3g} times the initial one where the median's "
            f"holds {usual:.3g}: it was scaled, or put in another order"
        )


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
        if not name.endswith(("qkv.weight", "qkv.bias")) or len(start) % 3:
            yield _part(name, values)
            continue
        # timm keeps queries, keys and values in one array, of which one third may be swollen.
        for letter, thirds in zip("qkv", zip(*(value.chunk(3) for value in values))):
            yield _part(name.replace("qkv", letter), thirds)


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
