"""A classifier of class means from which each client's own shift is taken away (choice).

Fine-tuning moves the features of all of a client's images alike, whatever their class, and every
client's by another vector. Pooled as they come, the means of two classes then differ by their
clients too. Classes that several clients hold tell the two apart: ``mean[k, c] = class[c] +
client[k]``, an analysis of variance without interaction.
"""

import torch
from torch import Tensor

from fedmitr_app.merging.averaging import cosine_head
from fedmitr_app.merging.mergeable import Mergeable, in_type
from fedmitr_app.uploads.class_means import (
    HEAD,
    READ,
    SCALE,
    most_lack_class_means,
    read_class_means,
)

RIDGE = 0.3
"""Of clients' shifts, in units of a client's mean weight (choice, on development partitions)."""


def additive_head(taken: Mergeable) -> dict[str, Tensor]:
    """Return the classifier of the classes' own effects, its rows equally long.

    Without uploads whose heads are no heads of class means, with a warning; empty if most are.
    """
    name, bias = HEAD
    heads: list[dict[str, Tensor]] = [{} for _ in taken.uploads]
    dtypes: dict[str, torch.dtype] = {}
    for client, key, value, dtype in taken.arrays(READ.__contains__):
        heads[client][key], dtypes[key] = value, dtype
    read = read_class_means(heads, taken.initial)
    keys = [upload.client for upload in taken.uploads]
    if most_lack_class_means(read, keys, "merge.head = 'additive'", "average"):
        return {}
    kept = [(size, each) for size, each in zip(taken.shares, read, strict=True) if each]
    known = torch.stack([size * each.shares for size, each in kept])
    known = known / known.sum()
    effects = class_effects(torch.stack([each.means for _, each in kept]), known)
    # As clients' heads are made, and their averages: a class's mean times its share.
    scale = SCALE / effects.shape[1] ** 0.5 * known.sum(0).unsqueeze(1)
    found = cosine_head({name: scale * effects, bias: heads[0][bias]})
    return {key: in_type(value, dtypes[key]) for key, value in found.items()}


def class_effects(means: Tensor, counts: Tensor) -> Tensor:
    """Fit class and client effects by weighted least squares and return those of the classes.

    A class mean of n images weighs sqrt(n); clients' effects are shrunk by a ridge, so that
    clients who share no class keep their means as they are; they sum to 0 over all images.

    Parameters
    ----------
    means : Tensor
        ``[K, C, D]``, float64.
    counts : Tensor
        Images, up to a factor, ``[K, C]``.

    Returns
    -------
    Tensor
        ``[C, D]``, zeros for a class that nobody holds.
    """
    weights = counts.sqrt()
    by_client, by_class = weights.sum(1), weights.sum(0).clamp_min(torch.finfo(torch.float64).tiny)
    pooled = (weights.unsqueeze(2) * means).sum(0) / by_class.unsqueeze(1)
    left = torch.diag(by_client + RIDGE * by_client.mean()) - weights / by_class @ weights.T
    right = (weights.unsqueeze(2) * (means - pooled)).sum(1)
    shifts: Tensor = torch.linalg.solve(left, right)
    shifts = shifts - counts.sum(1) / counts.sum() @ shifts
    return pooled - weights.T @ shifts / by_class.unsqueeze(1)
