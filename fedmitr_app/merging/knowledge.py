"""What each client knows of each class, from what it uploaded (choice).

Client k counts for ``sqrt(n_k g[k, c])`` in class c, ``g`` from 0 to 1: milder than its number of
examples, so that a class is shared among those that know it, and never for more than ``sqrt(n_k)``,
whatever its weights are.

Where clients are asked about their own classes alone (one-vs-all, logit-adjusted), ``g`` is best 1
for every class that a client holds. To take its share of the client's images instead, as label
counts would tell it, prefers clients of few classes, whose rows know few others to tell theirs
from: on one of two development partitions (CIFAR-10, one-vs-all) it cost 20 points.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from fedmitr_app.merging.mergeable import HEAD, Mergeable

_log = logging.getLogger(__name__)

UNMOVED = 0.04
"""Of a client's largest change of a row: below it a class's row stayed where it began.

On development partitions rows of classes that a client doesn't hold moved by 0.016 of it at most
(weight decay, from scratch; not at all where the head is fitted first), others by 0.085 at least.
"""


def class_weights(taken: Mergeable, how: str, priors: Callable[[], Tensor]) -> Tensor:
    """Weigh clients in each class, as ``merge.knowledge`` says: ``[K, C]``, float64.

    Parameters
    ----------
    how : str
        ``head-rows``: a client knows the classes whose rows of its head moved. ``probed``: as
        likely a class as its answers to generic images. ``label-counts``: as frequent a class as
        it tells; if a client doesn't, the first, with a warning.
    priors : Callable[[], Tensor]
        Gives the prior that each client's answers show, ``[K, C]``, its rows summing to 1; only
        called by ``probed``.
    """
    known = shared_counts(taken) if how == "label-counts" else None
    if how == "probed":
        known = priors().cpu().double()
    elif known is None:
        if how == "label-counts":
            _log.warning(
                "merge.knowledge = 'label-counts' needs label counts, which not every client "
                "shared (client.share-label-counts); using 'head-rows' instead."
            )
        known = (row_changes(taken) > UNMOVED).double()
    sizes = torch.tensor(taken.shares, dtype=torch.float64).unsqueeze(1)
    return (sizes * known).sqrt()


def shared_counts(taken: Mergeable) -> Tensor | None:
    """Return the class shares that clients tell, ``[K, C]``; None if one doesn't."""
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
