"""What each client knows of each class, from what it uploaded (choice).

Every reading estimates a client's label shares ``q[k, c]``, which sum to 1 over the classes, and
client k counts for ``sqrt(n_k q[k, c])`` in class c: milder than its number of examples, so that a
class is shared among those that know it. Nobody counts for more than ``sqrt(n_k)``, whatever its
weights are.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from fedmitr_app.merging.mergeable import HEAD, Mergeable

_log = logging.getLogger(__name__)

POWER = 1.0
UNMOVED = 0.1
"""Of a client's largest change of a row: below it a class's row stayed where it began."""


def class_weights(taken: Mergeable, label_shares: Tensor) -> Tensor:
    """Weigh clients in each class, by label shares ``[K, C]``: ``[K, C]``, float64."""
    sizes = torch.tensor(taken.shares, dtype=torch.float64).unsqueeze(1)
    return (sizes * label_shares.double()).sqrt()


def shared_counts(taken: Mergeable) -> Tensor | None:
    """Return the label shares that the clients tell, ``[K, C]``; None if one doesn't."""
    counts = [upload.label_counts for upload in taken.uploads]
    if None in counts:
        return None
    held = torch.tensor(counts, dtype=torch.float64)
    return held / held.sum(1, keepdim=True).clamp_min(1)


def row_changes(taken: Mergeable) -> Tensor:
    """Return how far each client's head rows went from where they began, ``[K, C]``, float64.

    As a share of its own largest, so that no client gains by long rows. They began at θ₀'s rows,
    or at zero where a client fits its head anew: at whichever some row has stayed nearer to.
    """
    found = []
    for _, name, value, _ in taken.arrays(HEAD[0].__eq__):
        lengths = torch.stack([value - taken.initial[name].double(), value]).norm(dim=2)
        lengths /= lengths.amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        found.append(lengths[lengths.amin(1).argmin()])
    return torch.stack(found)


def label_shares(taken: Mergeable, how: str, probed: Callable[[], Tensor]) -> Tensor:
    """Estimate the clients' label shares, ``[K, C]``, as ``merge.knowledge`` says.

    Parameters
    ----------
    how : str
        ``label-counts``: what clients share; if one doesn't, ``auto``, with a warning.
        ``head-norms``: how far rows of the head moved. ``probed``: the prior that a model shows
        on generic images. ``auto``: client by client the second where a row stayed where it
        began, which says that its training asks only for classes that it holds; else the third.
    probed : Callable[[], Tensor]
        Gives the prior that each client's answers show, ``[K, C]``, its rows summing to 1; only
        called where it is needed.
    """
    if how == "label-counts":
        counts = shared_counts(taken)
        if counts is not None:
            return counts
        _log.warning(
            "merge.knowledge = 'label-counts' needs label counts, which not every client shared "
            "(client.share-label-counts); using 'auto' instead."
        )
        how = "auto"
    if how == "probed":
        return probed().cpu().double()
    changes = row_changes(taken)
    moved = changes > UNMOVED
    shares = torch.where(moved, changes**POWER, 0.0)
    shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-30)
    untold = moved.all(1)
    if how == "auto" and untold.any():
        shares[untold] = probed().cpu().double()[untold]
    return shares
