"""What each client knows of each class, from what it uploaded (choice).

Where clients are asked about their own classes alone (one-vs-all, logit-adjusted), the rows of
other classes stay where they began, and everyone who holds a class best counts for the same in it,
whatever its number of images: that number says little of a row that was fitted with balanced
weights, and nobody has to be believed. Weights by a class's share of a client's images prefer
clients of few classes, whose rows know few others to tell theirs from (docs/explanation/method.md).
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from fedmitr_app.merging.mergeable import Mergeable
from fedmitr_app.uploads.class_means import HEAD

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
        ``head-rows``: alike in the classes whose rows of its head moved. ``probed``:
        ``sqrt(n_k q[k, c])``, q the prior that a client's answers to generic images show.
        ``label-counts``: the same with the class's share of its images, as the client tells it;
        if one doesn't, the first, with a warning.
    priors : Callable[[], Tensor]
        Gives the prior that each client's answers show, ``[K, C]``, its rows summing to 1; only
        called by ``probed``.
    """
    counts = shared_counts(taken) if how == "label-counts" else None
    if how == "label-counts" and counts is None:
        _log.warning(
            "merge.knowledge = 'label-counts' needs label counts, which not every client shared "
            "(client.share-label-counts); using 'head-rows' instead."
        )
    known = priors().cpu().double() if how == "probed" else counts
    if known is None:
        return (row_changes(taken) > UNMOVED).double()
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
