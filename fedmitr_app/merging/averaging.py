"""The weighted average of uploads, and means of head rows with weights of their own."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedmitr_app.merging.mergeable import Mergeable, in_type
from fedmitr_app.uploads.class_means import HEAD


def average(
    taken: Mergeable, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """Return the average state dict of the uploads (FedAvg, McMahan et al., 2017).

    Sums in float64, in the uploads' order, and holds one sum and one array of one upload in
    memory, however many uploads.

    Returns
    -------
    dict[str, Tensor]
        In the first upload's types and order of names, those that are ``wanted``; θ₀'s if there
        is no upload that is fit.
    """
    if not taken.uploads:
        return {name: value for name, value in taken.initial.items() if wanted(name)}
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for client, name, value, dtype in taken.arrays(wanted):
        if name not in sums:
            sums[name] = torch.zeros(value.shape, dtype=torch.float64)
            dtypes[name] = dtype
        sums[name].add_(value, alpha=taken.shares[client])
    # One at a time, so that the float64 sums go as their results come.
    return {name: in_type(sums.pop(name), dtypes[name]) for name in list(sums)}


def class_wise_head(taken: Mergeable, weights: Tensor) -> dict[str, Tensor]:
    """Return the classifier whose row of a class is a mean by who knows the class (choice).

    In a plain average the row of a class that few clients hold is mostly others' that never
    learnt it: shrunk towards where everybody began, so that its logit is too.

    Parameters
    ----------
    weights : Tensor
        ``[K, C]``, float64, not negative: what client k counts for in class c. A class where all
        are 0 is averaged as the other arrays are.
    """
    shares = torch.tensor(taken.shares, dtype=torch.float64).unsqueeze(1)
    shares = torch.where(weights.sum(0) > 0, weights, shares)
    shares = shares / shares.sum(0)
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for client, name, value, dtype in taken.arrays(HEAD.__contains__):
        dtypes[name] = dtype
        rows = shares[client].reshape(-1, *[1] * (value.dim() - 1)) * value
        sums[name] = sums[name] + rows if name in sums else rows
    return {name: in_type(value, dtypes[name]) for name, value in sums.items()}


def cosine_head(averaged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a classifier whose rows are as long as each other, without biases.

    Of clients' heads of class means the average holds each class's mean times its share of all
    images: the directions are what is wanted, also where some classes are rarer (choice).

    Parameters
    ----------
    averaged : Mapping[str, Tensor]
        An averaged state dict. The new rows are as long as its rows together, as one class's
        would be that has all images; a row of zeros stays.
    """
    name, bias = HEAD
    rows = averaged[name].double()
    lengths = rows.norm(dim=1, keepdim=True)
    rows = rows * lengths.sum() / lengths.clamp_min(torch.finfo(torch.float64).tiny)
    return {name: rows.to(averaged[name].dtype), bias: torch.zeros_like(averaged[bias])}
