"""Per-image losses and priors of the inversion: each returns ``[B]``, never a batch mean.

Per image, so that an image's gradient doesn't depend on which others share its batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits ``[B, C]`` with class probabilities ``[B, C]``."""
    return -(targets * logits.log_softmax(-1)).sum(-1)


def patch_similarity_entropy(patch_tokens: Tensor, bins: int = 32, width: float = 0.1) -> Tensor:
    """Negative differential entropy of the patches' cosine similarities (PSAQ-ViT, ECCV 2022).

    Real images have both alike and unlike patches, noise only alike ones: a ViT's own
    image statistic, where a convolutional network has BatchNorm. A Gaussian kernel density
    over [-1, 1] stands for the distribution. Shape ``[B, n, D] -> [B]``; 0 for one patch.
    """
    count = patch_tokens.shape[1]
    if count < 2:
        return patch_tokens.new_zeros(len(patch_tokens))
    unit = F.normalize(patch_tokens, dim=-1)
    upper = torch.triu_indices(count, count, offset=1, device=unit.device)
    similarity = (unit @ unit.transpose(1, 2))[:, upper[0], upper[1]]
    points = torch.linspace(-1, 1, bins, device=unit.device)
    kernel = torch.exp(-0.5 * ((similarity.unsqueeze(-1) - points) / width) ** 2).mean(1)
    density = kernel / (kernel.sum(-1, keepdim=True) * (2 / bins) + EPS)
    return (density * (density + EPS).log()).sum(-1) * (2 / bins)


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


def jensen_shannon(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two predictions ``[B, C]``, in nats: ``[B]``, at most log 2."""
    log_a, log_b = logits_a.log_softmax(-1), logits_b.log_softmax(-1)
    log_mean = torch.logaddexp(log_a, log_b) - math.log(2)
    return 0.5 * (
        (log_a.exp() * (log_a - log_mean)).sum(-1) + (log_b.exp() * (log_b - log_mean)).sum(-1)
    )
