"""Per-image losses and priors of the inversion: each returns ``[B]``, never a batch mean.

Per image, so that an image's gradient doesn't depend on which others share its batch.
"""

from torch import Tensor

EPS = 1e-12


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits ``[B, C]`` with class probabilities ``[B, C]``."""
    return -(targets * logits.log_softmax(-1)).sum(-1)


def feature_distance(features: Tensor, targets: Tensor, means: Tensor) -> Tensor:
    """Half the mean squared distance to the mean feature of the target's classes, ``[B]`` (choice).

    What DeepInversion's statistics of BatchNorm layers are to a convolutional network (Yin et al.,
    CVPR 2020): images that a class's logit alone makes are further out than any real one's, and
    the class's mean is known where clients upload heads of class means.

    Parameters
    ----------
    features : Tensor
        ``[B, D]``
    targets : Tensor
        Class probabilities ``[B, C]``; 0 for an image whose classes the client doesn't hold.
    means : Tensor
        ``[C, D]``, zeros for a class that it doesn't hold.
    """
    known = targets * means.any(1)
    share = known.sum(1, keepdim=True)
    wanted = known @ means / share.clamp_min(EPS)
    return share.squeeze(1) * (features - wanted).square().mean(1) / 2
