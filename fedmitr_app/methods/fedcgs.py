"""FedCGS: a head fitted to all clients' class moments, without training (AAAI 2025).

Guan et al., "Capturing Global Statistics for One-shot Federated Learning". It needs more than
weights: each client's class moments of the frozen θ₀'s features, which add up to those of all
images together. The head is the Gaussian classifier with one covariance for all classes.
"""

import copy
import logging

import numpy as np
import torch

from fedmitr_app.errors import MethodUnavailable
from fedmitr_app.methods.fused import Fused
from fedmitr_app.methods.task import Task
from fedmitr_app.uploads import ClassMoments, pool_moments, too_long

_log = logging.getLogger(__name__)

SHRINKAGE = 1e-2
RELATIVE_FLOOR = 1e-6
ABSENT = -1e6


def fedcgs(task: Task) -> Fused:
    """Give θ₀ the head that the pooled moments make.

    Raises
    ------
    MethodUnavailable
        If no client shares class moments that can be right. Those of some may be lacking, or
        can't be: then the head is the others'.
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
    weight, bias = gaussian_head(pool_moments(_believed(task)))
    model = copy.deepcopy(task.model).to(task.device)
    head = model.vit.head
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
    return Fused(model=model.eval())


def _believed(task: Task) -> list[ClassMoments]:
    """Read the moments, without those of features that θ₀ doesn't give.

    A client's images count for as many as in the average: claims are no more proved here.
    """
    pairs = zip(task.uploads, task.clients, strict=True)
    sharing = [(upload, client) for upload, client in pairs if upload.moments]
    parts = [upload.load_moments() for upload, _ in sharing]
    norm = task.model.vit.norm
    scale, shift = norm.weight.detach().double(), norm.bias.detach().double()
    # Normed values have a mean square of 1 at most, so that all of them are √D long.
    longest = float(scale.abs().max() * len(scale) ** 0.5 + shift.norm())
    usual = float(scale.square().sum() + shift.square().sum())
    believed = []
    for (upload, client), part, reason in zip(sharing, parts, too_long(parts, usual, longest)):
        if reason:
            _log.warning("The class moments of %s are left out: %s.", upload.client, reason)
        else:
            believed.append(part.times(client.num_examples / part.counts.sum()))
    if not believed:
        raise MethodUnavailable("no client's class moments can be those of the initial model")
    return believed


def gaussian_head(moments: ClassMoments) -> tuple[np.ndarray, np.ndarray]:
    """Return weight ``[C, D]`` and bias ``[C]`` of the linear discriminant.

    w_c = Σ⁻¹ μ_c and b_c = ln π_c − ½ μ_cᵀ Σ⁻¹ μ_c, both less their mean over the classes that
    have images, which changes no answer; Σ is the pooled covariance within classes,
    shrunk a hundredth of the way to a multiple of the identity (choice): few images span fewer
    directions than features have. A class without images is never answered.
    """
    present = moments.counts > 0
    total, (classes, size) = moments.counts.sum(), moments.sums.shape
    covariance = moments.within_scatter() / total
    # Features that don't vary leave rounding, or nothing, to invert: then this is Σ.
    least = RELATIVE_FLOOR * np.trace(moments.scatter) / total / size + np.finfo(np.float32).tiny
    mean_variance = max(np.trace(covariance) / size, least)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * mean_variance * np.eye(size)
    means = moments.sums[present] / moments.counts[present, None]
    weight, bias = np.zeros((classes, size)), np.full(classes, ABSENT)
    weight[present] = np.linalg.solve(covariance, means.T).T
    bias[present] = np.log(moments.counts[present] / total)
    bias[present] -= (weight[present] * means).sum(1) / 2
    # What all classes have in common says nothing, and where features vary little it is so large
    # that a head of 32 bits loses what tells them apart.
    weight[present] -= weight[present].mean(0)
    bias[present] -= bias[present].mean()
    return weight, bias
