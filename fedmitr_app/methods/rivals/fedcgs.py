"""FedCGS: a head fitted to all clients' class moments, without training (AAAI 2025).

Guan et al., "Capturing Global Statistics for One-shot Federated Learning". It needs more than
weights: each client's class moments of the frozen θ₀'s features, which add up to those of all
images together. The head is the Gaussian classifier with one covariance for all classes: the
linear discriminant, which "Gaussian heads" of one-shot federated learning (GH-LDA) are too.
It is worth as much as θ₀'s features are: where θ₀ is random, so are they.
"""

import numpy as np

from fedmitr_app.methods.registry import MOMENTS, register
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.rivals.closed_form import (
    ABSENT,
    mean_variance,
    pooled_moments,
    shrinkage,
    with_head,
)
from fedmitr_app.methods.task import Task
from fedmitr_app.uploads import ClassMoments


@register("fedcgs", reads=["teacher"], needs=[MOMENTS], paper="Guan et al., AAAI 2025")
def fedcgs(task: Task) -> MethodResult:
    """Give θ₀ the linear discriminant that the pooled moments make.

    Raises
    ------
    MethodUnavailable
        As :func:`pooled_moments` does.
    """
    return with_head(task, *gaussian_head(pooled_moments(task)))


def gaussian_head(moments: ClassMoments) -> tuple[np.ndarray, np.ndarray]:
    """Return weight ``[C, D]`` and bias ``[C]`` of the linear discriminant.

    w_c = Σ⁻¹ μ_c and b_c = ln π_c − ½ μ_cᵀ Σ⁻¹ μ_c, both less their mean over the classes that
    have images, which changes no answer; Σ is the pooled covariance within classes, shrunk
    towards a multiple of the identity (:func:`shrinkage`): few images span fewer directions than
    features have. A class without images is never answered.
    """
    present = moments.counts > 0
    total, (classes, size) = moments.counts.sum(), moments.sums.shape
    covariance = moments.within_scatter() / total
    share, usual = shrinkage(covariance, total), mean_variance(covariance, moments)
    covariance = (1 - share) * covariance + share * usual * np.eye(size)
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
