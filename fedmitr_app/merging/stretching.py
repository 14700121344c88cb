"""How far a merge goes from θ₀: task arithmetic's one number.

Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023. The steps of clients that trained
apart are nearly orthogonal, so that their mean is a good deal shorter than each of them, and holds
as much less of what each has learnt.
"""

from collections.abc import Mapping

from torch import Tensor

from fedmitr_app.merging.mergeable import Mergeable


def stretch(taken: Mergeable, merged: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return θ₀ and ``scale`` times the merged step, of the trunk; the rest as it is.

    Parameters
    ----------
    scale : float
        0: what :func:`own_length` says. With 1 ``merged`` is returned as it is, to the last bit.
    """
    scale = scale or own_length(taken, merged)
    if scale == 1:
        return dict(merged)
    state = dict(merged)
    for name in filter(taken.in_trunk, merged):
        start = taken.initial[name].double()
        state[name] = (start + scale * (merged[name] - start)).to(merged[name].dtype)
    return state


def own_length(taken: Mergeable, merged: Mapping[str, Tensor]) -> float:
    """Return what makes the merged step as long as the clients' are in their mean (choice).

    At least 1, and at most what it is for the plain mean of steps that have nothing in common,
    which is no more than the root of their number: strangers whose steps go against the others'
    make the mean short, and would have it stretched without end.
    """
    squares = [0.0] * len(taken.uploads)
    for client, name, value, _ in taken.arrays(taken.in_trunk):
        squares[client] += float((value - taken.initial[name].double()).square().sum())
    parts = [share * square**0.5 for share, square in zip(taken.shares, squares, strict=True)]
    length = sum(
        float((merged[name].double() - taken.initial[name].double()).square().sum())
        for name in filter(taken.in_trunk, merged)
    )
    if not length:
        return 1.0
    apart = sum(parts) / sum(part**2 for part in parts) ** 0.5
    return float(min(max(sum(parts) / length**0.5, 1.0), apart))
