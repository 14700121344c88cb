"""A classifier head of class means: how a client makes it, and what a server reads off it.

A head that is trained tells a client's classes from its other classes, which differ from client to
client. The nearest-class-mean head (Mensink et al., "Distance-Based Image Classification", PAMI
2013) holds of each class what the class's own images say, so that averaging loses nothing of it,
and what is trained are the features alone, towards their means (as in prototypical networks: Snell
et al., NeurIPS 2017; for one upload: choice).
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

ROUNDING = 0.02
"""By which shares that are read off a head may miss 1: uploads may be in half precision."""
SCALE = 0.3
"""Of class means' logits (choice): a pre-trained ViT's features are about sqrt(D) long, so that
logits of nearest and other classes lie a few units apart."""
_TINY = torch.finfo(torch.float64).tiny


class ClassMeans(NamedTuple):
    """What a client's head says of its images, float64."""

    shares: Tensor
    """Each class's share of the images, ``[C]``."""
    means: Tensor
    """Each class's mean feature, ``[C, D]``; zeros for a class without images."""


@torch.no_grad()
def set_class_means(
    head: nn.Linear, features: Tensor, labels: Tensor, *, by_share: bool = False
) -> None:
    """Make a head in place that answers by the nearest class mean.

    Row and bias of class c are ``SCALE / sqrt(D)`` times ``mean_c`` and ``-|mean_c|^2 / 2``: up to
    what all classes have in common, minus half the squared distance to the mean. Classes without
    an image get zeros.

    Parameters
    ----------
    features, labels : Tensor
        ``[n, D]`` and ``[n]``.
    by_share : bool
        Multiply each class's by its share of the images: both then are means over the images of
        what one image gives, so that the clients' averages by numbers of examples are those of
        all images together (but for the biases' squares of each client's own means).
    """
    classes, size = head.weight.shape
    sums = torch.zeros(classes, size, dtype=torch.float64, device=features.device)
    sums.index_add_(0, labels, features.double())
    counts = torch.bincount(labels, minlength=classes).double().clamp_min(1).unsqueeze(1)
    means = sums / counts
    scale = SCALE / size**0.5 * (counts / len(labels) if by_share else torch.ones_like(counts))
    head.weight.copy_(scale * means)
    head.bias.copy_(-scale.squeeze(1) / 2 * means.square().sum(1))


def read_class_means(arrays: Mapping[str, Tensor]) -> ClassMeans | None:
    """Read a client's class means and their shares off its head.

    None if that head is no such one, made by :func:`set_class_means` with ``by_share``: its shares
    would not sum to 1, or its means would be further out than the final norm lets any feature be
    (whoever claims such means would drown everybody else's).

    Parameters
    ----------
    arrays : Mapping[str, Tensor]
        By timm's names: ``head.*``, and ``norm.*`` if the model has such a final norm.
    """
    rows, biases = arrays["head.weight"].detach().double(), arrays["head.bias"].detach().double()
    held = biases < 0
    scaled = rows.square().sum(1) / (-2 * biases).clamp_min(_TINY)
    scale = torch.where(held, scaled, 0.0).unsqueeze(1)
    shares = scale.squeeze(1) * rows.shape[1] ** 0.5 / SCALE
    if abs(float(shares.sum()) - 1) >= ROUNDING or bool(rows[~held].any()):
        return None
    means = torch.where(scale > 0, rows / scale, 0.0)
    return ClassMeans(shares, means) if _in_reach(means[held], arrays) else None


def _in_reach(means: Tensor, arrays: Mapping[str, Tensor]) -> bool:
    """Say whether features ``norm(x)``, and so their means, can lie there.

    Normalised values are at most sqrt(D) long before the norm's own weights and biases.
    """
    if "norm.weight" not in arrays:
        return True
    weight = arrays["norm.weight"].detach().double()
    bias = arrays["norm.bias"].detach().double() if "norm.bias" in arrays else 0.0
    off = ((means - bias).abs() - ROUNDING * means.abs()).clamp_min(0)
    lengths = (off / weight.abs().clamp_min(_TINY)).square().sum(1)
    return bool((lengths <= (1 + ROUNDING) * means.shape[1]).all())
