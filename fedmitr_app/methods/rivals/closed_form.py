"""What heads that are solved for have in common: pooled class moments in, θ₀ with a head out."""

import copy
import logging

import numpy as np
import torch
from torch import nn

from fedmitr_app.errors import MethodUnavailable
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.task import Task
from fedmitr_app.uploads import ClassMoments, pool_moments, too_long

_log = logging.getLogger(__name__)

ABSENT = -1e6
"""Bias of a class without images: it is never answered."""
RELATIVE_FLOOR = 1e-6


def pooled_moments(task: Task) -> ClassMoments:
    """Add up the class moments of the frozen θ₀'s features that the clients share.

    Raises
    ------
    MethodUnavailable
        If no client shares class moments that can be right. Those of some may be lacking, or
        can't be: then the sum is the others'.
    """
    silent = [upload.client for upload in task.uploads if not upload.moments]
    names = f"{', '.join(silent[:3])}{' and others' if len(silent) > 3 else ''}"
    if len(silent) == len(task.uploads):
        raise MethodUnavailable(
            f"{names} uploaded no class moments: set client.share-moments = true, or choose "
            "another method"
        )
    if silent:
        _log.warning("The head is fitted without %s, of whom there are no class moments.", names)
    return pool_moments(_believed(task))


def _believed(task: Task) -> list[ClassMoments]:
    """Read the moments, without those of features that θ₀ doesn't give.

    A client's images count for as many as in the average: claims are no more proved here.
    """
    pairs = zip(task.uploads, task.clients, strict=True)
    sharing = [(upload, client) for upload, client in pairs if upload.moments]
    parts = [upload.load_moments() for upload, _ in sharing]
    norm = task.model.vit.norm
    if not isinstance(norm, nn.LayerNorm):
        raise MethodUnavailable(
            "the initial model doesn't end in a LayerNorm, which says how long its features can be"
        )
    scale, shift = norm.weight.detach().double(), norm.bias.detach().double()
    # Normed values have a mean square of 1 at most, so that all of them are √D long.
    longest = float(scale.abs().max() * len(scale) ** 0.5 + shift.norm())
    usual = float(scale.square().sum() + shift.square().sum())
    believed = []
    for (upload, client), part, reason in zip(
        sharing, parts, too_long(parts, usual, longest), strict=True
    ):
        if reason:
            _log.warning("The class moments of %s are left out: %s.", upload.client, reason)
        else:
            believed.append(part.times(client.num_examples / part.counts.sum()))
    if not believed:
        raise MethodUnavailable("no client's class moments can be those of the initial model")
    return believed


def shrinkage(covariance: np.ndarray, count: float) -> float:
    """Return how far a covariance ``[D, D]`` of ``count`` images is to be shrunk, from 0 to 1.

    Oracle approximating shrinkage (Chen et al., IEEE Transactions on Signal Processing, 2010), as
    scikit-learn's ``oas`` has it (choice: the papers take a constant, but few images of a
    pre-trained model's features need a third, many of a random one's hardly any).
    """
    squares, square = float((covariance**2).sum()), float(np.trace(covariance) ** 2)
    varied = (count + 1) * (squares - square / len(covariance))
    return min(1.0, (squares + square) / varied) if varied > 0 else 1.0


def mean_variance(covariance: np.ndarray, moments: ClassMoments) -> float:
    """Return a feature's mean variance under ``covariance`` ``[D, D]``, above 0.

    Features that don't vary leave rounding, or nothing, to invert: then a floor takes its place.
    """
    size = len(covariance)
    least = RELATIVE_FLOOR * np.trace(moments.scatter) / moments.counts.sum() / size
    return float(max(np.trace(covariance) / size, least + np.finfo(np.float32).tiny))


def with_head(task: Task, weight: np.ndarray, bias: np.ndarray) -> MethodResult:
    """Give θ₀ a head of weight ``[C, D]`` and bias ``[C]``."""
    model = copy.deepcopy(task.model).to(task.device)
    head = model.vit.head
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
    return MethodResult(model=model.eval())
