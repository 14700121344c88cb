"""TIES-Merging: trim the clients' steps, elect signs, average those that agree.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from fedmitr_app.merging.averaging import average
from fedmitr_app.merging.mergeable import Array, Mergeable, in_type


def ties(taken: Mergeable, density: float) -> dict[str, Tensor]:
    """Return θ₀ and the merged step; what is outside the trunk is averaged.

    Of a client's step from θ₀, all arrays together, the ``density`` largest values stay. A value's
    sign is that of their sum over the clients, its size the mean of those that have this sign. A
    client counts by its share (stated: all alike); where the sum is 0, θ₀ stays. The paper's
    density is 0.2, for clients of tasks of their own; where the task is one, all of it earns more.

    Uploads are read three times, so that they needn't be held together: in memory are one
    client's step, and two sums of the whole model.
    """
    state = average(taken, lambda name: not taken.in_trunk(name))
    limits = _limits(taken, density)
    elected: dict[str, Tensor] = {}
    for client, name, step, _ in _trimmed(taken, limits):
        elected[name] = elected.get(name, 0) + taken.shares[client] * step
    elected = {name: value.sign().to(torch.int8) for name, value in elected.items()}
    sums: dict[str, Tensor] = {}
    counted: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for client, name, step, dtype in _trimmed(taken, limits):
        share, agrees = taken.shares[client], (step.sign() == elected[name]) & (step != 0)
        sums[name] = sums.get(name, 0) + share * step * agrees
        counted[name] = counted.get(name, 0) + share * agrees
        dtypes[name] = dtype
    for name in list(sums):
        nobody = counted[name] == 0
        step = sums.pop(name) / counted.pop(name).masked_fill_(nobody, 1.0)
        state[name] = in_type(taken.initial[name].double() + step, dtypes[name])
    return state


def _trimmed(taken: Mergeable, limits: Sequence[float]) -> Iterator[Array]:
    """Yield the clients' steps with zeros for all that is below their limits."""
    for client, name, value, dtype in taken.arrays(taken.in_trunk):
        step = value - taken.initial[name].double()
        yield Array(client, name, step * (_size(step) >= limits[client]), dtype)


def _limits(taken: Mergeable, density: float) -> list[float]:
    """Return the least size of each client's ``density`` largest values."""
    found = []
    for _, arrays in groupby(taken.arrays(taken.in_trunk), lambda array: array.client):
        steps = (array.value - taken.initial[array.name].double() for array in arrays)
        sizes = torch.cat([_size(step).flatten() for step in steps])
        stay = max(1, round(density * len(sizes)))
        found.append(float(sizes.kthvalue(len(sizes) - stay + 1).values))
    return found


def _size(step: Tensor) -> Tensor:
    return step.abs().float()  # half of float64's memory, of a whole model
