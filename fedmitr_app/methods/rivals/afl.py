"""AFL: ridge regression on frozen features, solved at once for all clients (CVPR 2025).

He et al., "AFL: A Single-Round Analytic Approach for Federated Learning with Pre-trained Models".
With features X and one-hot labels Y of all images, W = (XᵀX + γI)⁻¹ XᵀY, and both products are
sums over the clients: nothing is lost by their being apart, whatever the skew. The class
moments that FedCGS asks for hold both: XᵀX is their scatter, XᵀY their sums. It is worth as much
as θ₀'s features are: where θ₀ is random, so are they.
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

MOST = 0.99
"""Share at most that the penalty takes the covariance's place for: all of it is no regression."""


@register("afl", reads=["teacher"], needs=[MOMENTS], paper="He et al., CVPR 2025")
def afl(task: Task) -> MethodResult:
    """Give θ₀ the head that ridge regression on the pooled moments makes.

    Raises
    ------
    MethodUnavailable
        As :func:`pooled_moments` does.
    """
    return with_head(task, *ridge_head(pooled_moments(task)))


def ridge_head(moments: ClassMoments) -> tuple[np.ndarray, np.ndarray]:
    """Return weight ``[C, D]`` and bias ``[C]`` of the regression on one-hot labels.

    The paper's has no bias; here there is one, which isn't penalised (choice: the same as to
    regress on features and labels less their means). γ is what shrinks the covariance as far as
    the discriminant's is (:func:`shrinkage`; choice: the paper takes its own γ away again, which
    needs more images than features have directions). A class without images is never answered.
    """
    present = moments.counts > 0
    total, (classes, size) = moments.counts.sum(), moments.sums.shape
    mean = moments.sums.sum(0) / total
    covariance = moments.scatter / total - np.outer(mean, mean)
    shares = moments.counts[present] / total
    common = moments.sums[present] / total - np.outer(shares, mean)
    share = min(shrinkage(covariance, total), MOST)
    penalty = share / (1 - share) * mean_variance(covariance, moments) * np.eye(size)
    weight, bias = np.zeros((classes, size)), np.full(classes, ABSENT)
    weight[present] = np.linalg.solve(covariance + penalty, common.T).T
    bias[present] = shares - weight[present] @ mean
    return weight, bias
