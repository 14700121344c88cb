"""Ways to combine K clients' outputs into one teacher (choice).

Every combination turns logits ``[K, ..., C]`` into combined logits ``[..., C]``, so that
``softmax(combined / T)`` is the teacher's soft label at temperature T. Averages of
probabilities are returned as their logarithms.

Two kinds of weights multiply the clients' parts: ``class_weights[k, c]`` says how much
client k knows of class c, ``members[k, b]`` which clients serve which image (a per-image
subset of the ensemble; ``None``: all of them). Where none of an image's clients knows a
class, they answer for it alike.

Class weights on raw logits (``label-aware``, ``prior-probed``) depend on each client's logit
offset, the constant that its own softmax doesn't see: with weights that differ between classes
it no longer cancels. Centring each client's logits first costs accuracy
(docs/explanation/method.md), so that they are combined as they are (where priors were probed, less
what :class:`fedmitr_app.teacher.Teacher` takes away for them).
"""

import math

import torch
from torch import Tensor

EPS = 1e-8


def combine_logits(
    logits: Tensor, how: str, class_weights: Tensor, members: Tensor | None = None
) -> Tensor:
    """Combine client logits.

    Parameters
    ----------
    logits : Tensor
        ``[K, B, C]`` for class tokens, ``[K, B, n, C]`` for patch tokens.
    how : str
        A name of ``teacher.combine``.
    class_weights : Tensor
        ``[K, C]``, non-negative; what it holds depends on ``how``
        (:meth:`fedmitr_app.teacher.Teacher.build` fills it).
    members : Tensor, optional
        ``[K, B]`` bool, at least one client for each image.

    Returns
    -------
    Tensor
        ``[B, C]`` or ``[B, n, C]``.
    """
    shape = (len(logits), *[1] * (logits.dim() - 2), -1)
    weights = class_weights.reshape(shape).expand_as(logits)
    if members is not None:
        served = members.reshape(*members.shape, *[1] * (logits.dim() - 2))
        weights = share_out(weights, served)
        logits = torch.where(served, logits, torch.zeros((), device=logits.device))
    if how in ("confidence", "prior-confidence"):
        weights = weights * confidence(logits).unsqueeze(-1)
    if how == "median-softmax":
        return _median(logits.softmax(-1), weights > 0).clamp_min(EPS).log()
    weights = weights / weights.sum(0)
    if how in ("mean-logits", "label-aware", "prior-probed", "prior-shared", "class-means"):
        return (weights * logits).sum(0)
    return torch.logsumexp(logits.log_softmax(-1) + weights.clamp_min(EPS).log(), dim=0)


def without_shares(shares: Tensor) -> Tensor:
    """Return what takes the shares out of the logits of heads of class means, ``[K, C]``.

    Their rows hold them (``shares`` ``[K, C]``), so that averages of heads are weighted by them.
    """
    return torch.where(shares > 0, 1 / shares, 1.0)


def _median(values: Tensor, counted: Tensor) -> Tensor:
    """Return the median over the first dimension of what is counted; of two, their mean."""
    ascending = torch.where(counted, values, math.inf).sort(dim=0).values
    number = counted.sum(0, keepdim=True)
    low, high = ascending.gather(0, (number - 1) // 2), ascending.gather(0, number // 2)
    return (low + high)[0] / 2


def share_out(weights: Tensor, served: Tensor) -> Tensor:
    """Leave out the clients that don't serve; those that do share alike what none of them has.

    Without the second half a class that no serving client knows would get the logit 0,
    which is a high one, and an image could be left without any teacher. ``weights`` and
    ``served`` are ``[K, ...]``, of shapes that broadcast.
    """
    weights = weights * served
    nobody = weights.sum(0, keepdim=True) <= 0
    return torch.where(nobody, served.to(weights.dtype), weights)


def confidence(logits: Tensor, sharpness: float = 4.0) -> Tensor:
    """Return ``exp(-sharpness * H / log C)`` of each prediction, ``[..., C] -> [...]``.

    H is the predictive entropy: 1 for a certain client, ``exp(-sharpness)`` for one that
    has no idea (choice).
    """
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return torch.exp(-sharpness * entropy / math.log(logits.shape[-1]))
