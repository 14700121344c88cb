"""A classifier head of class means: how a client makes it, and what a server reads off it.

A head that is trained tells a client's classes from its other classes, which differ from client to
client. The nearest-class-mean head (Mensink et al., "Distance-Based Image Classification", PAMI
2013) holds of each class what the class's own images say, so that averaging loses nothing of it,
and what is trained are the features alone, towards their means (as in prototypical networks: Snell
et al., NeurIPS 2017; for one upload: choice).
"""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)

HEAD = ("head.weight", "head.bias")
"""timm's names of the classifier, whose rows are classes."""
NORM, NORM_OF_MEAN = ("norm.weight", "norm.bias"), ("fc_norm.weight", "fc_norm.bias")
"""timm's names of the norm before it: of the class token, or of the patches' mean (a model has
one of them)."""
READ = frozenset((*HEAD, *NORM, *NORM_OF_MEAN))
"""The names of all that :func:`read_class_means` reads."""
ROUNDING = 0.02
"""Relative; what half precision, which uploads may be in, does to sums of shares and to means."""
LEAST_SHARE = 1e-8
"""Of a class that a client holds."""
MOST_APART = 0.3
"""Root mean square of how far a client's final norm may be from the usual one, in units of its
weights: honest ones that are known reach 0.11 from scratch, 0.001 fine-tuned (choice)."""
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


def read_class_means(
    uploads: Sequence[Mapping[str, Tensor]], initial: Mapping[str, Tensor]
) -> list[ClassMeans | None]:
    """Read each client's class means and their shares off its head.

    None for a head that is no such one, made by :func:`set_class_means` with ``by_share``: its
    shares do not sum to 1, or nobody could believe it. Features are compared between clients, so
    that the final norm which they come out of must be about that of the others and of θ₀ (their
    median), and the means no further out than it lets any feature be: whoever claims others would
    drown everybody's.

    Parameters
    ----------
    uploads : Sequence[Mapping[str, Tensor]]
        Each client's arrays by timm's names, of ``READ`` those that the model has.
    initial : Mapping[str, Tensor]
        θ₀'s, likewise.
    """
    frames = torch.stack([_frame(arrays) for arrays in (*uploads, initial)])
    usual = frames.quantile(0.5, dim=0)
    found = [_read(arrays) for arrays in uploads]
    apart = ((frames[:-1] - usual) / usual[0].abs().clamp_min(_TINY)).square().mean(2).sqrt()
    return [
        one if one and bool((off < MOST_APART).all()) and _in_reach(one.means, frame) else None
        for one, off, frame in zip(found, apart, frames[:-1], strict=True)
    ]


def most_lack_class_means(
    read: Sequence[object | None],
    keys: Sequence[str],
    setting: str,
    instead: str,
    warn: bool = True,
) -> bool:
    """Say whether most clients' heads hold no class means, and warn of those that don't.

    Parameters
    ----------
    read : Sequence[object | None]
        What was read off each head, None for another one.
    keys : Sequence[str]
        The clients'.
    setting, instead : str
        What needs class means, and what is done where most have other heads.
    """
    others = [key for key, one in zip(keys, read, strict=True) if one is None]
    most = 2 * len(others) > len(read)
    if others and warn:
        _log.warning(
            "%s needs heads of class means (client.head), and those of %s are others, or of means "
            "that no features have: %s.",
            setting,
            ", ".join(others),
            f"using {instead!r} instead" if most else "they are left out",
        )
    return most


def _read(arrays: Mapping[str, Tensor]) -> ClassMeans | None:
    """Read shares and means off a head whose shares sum to 1."""
    rows, biases = (arrays[name].detach().double() for name in HEAD)
    held = rows.any(1)
    if bool(((biases < 0) != held).any()) or bool((biases > 0).any()):
        return None
    scale = torch.where(held, rows.square().sum(1) / (-2 * biases).clamp_min(_TINY), 0.0)
    shares = scale * rows.shape[1] ** 0.5 / SCALE
    if abs(float(shares.sum()) - 1) >= ROUNDING or bool((shares[held] < LEAST_SHARE).any()):
        return None
    means = torch.where(held.unsqueeze(1), rows / scale.unsqueeze(1), 0.0)
    return ClassMeans(shares, means)


def _frame(arrays: Mapping[str, Tensor]) -> Tensor:
    """Return what the final norm multiplies by and adds, ``[2, D]``."""
    size = arrays[HEAD[0]].shape[1]
    usual = (torch.ones(size), torch.zeros(size))
    norm = NORM_OF_MEAN if NORM_OF_MEAN[0] in arrays else NORM
    pairs = zip(norm, usual, strict=True)
    return torch.stack([arrays.get(name, plain).detach().double().cpu() for name, plain in pairs])


def _in_reach(means: Tensor, frame: Tensor) -> bool:
    """Say whether features ``norm(x)``, and so their means, can lie there.

    Normalised values are at most sqrt(D) long before they are multiplied and added to.
    """
    weight, bias = frame
    means = means[means.any(1)].cpu()
    off = ((means - bias).abs() - ROUNDING * means.abs()).clamp_min(0)
    lengths = (off / weight.abs().clamp_min(_TINY)).square().sum(1)
    return bool((lengths <= (1 + ROUNDING) * means.shape[1]).all())
