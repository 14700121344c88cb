"""What a client's training minimises: three losses that see the same logits.

Under label skew the loss decides what weight averaging keeps. Softmax's cross-entropy lowers
the logits of the classes that a client doesn't hold, in its head and in the features that feed
it: averaged, the clients cancel each other. A loss that asks a client about its own classes only
leaves the others' rows of the head where they were.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits ``[B, C]`` and labels ``[B]`` to the batch's mean loss."""


def client_loss(kind: str, counts: Tensor, smoothing: float = 0.0, balance: float = 1.0) -> Loss:
    """Return the loss that suits a shard.

    Parameters
    ----------
    kind : str
        ``cross-entropy``: softmax over all classes. ``logit-adjusted``: softmax cross-entropy of
        ``z + balance * log(prior)`` over the classes that the shard holds (Menon et al., ICLR 2021;
        for federated clients: FedLC, ICML 2022; classes held only: choice). ``one-vs-all``: binary
        cross-entropy of each class that the shard holds, the mean over these classes.
    counts : Tensor
        The shard's number of images of each class, ``[C]``, on the logits' device.
    smoothing : float
        Label smoothing: spread over the classes that the loss sees; for ``one-vs-all`` between
        yes and no.
    balance : float
        From 0 (each image counts for the same) to 1: ``one-vs-all``, a class's images and the
        other images count for the same altogether; between, weights to that power.
    """
    if kind == "cross-entropy":
        return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=smoothing)
    held = counts.nonzero().flatten()
    shares = counts[held] / counts.sum()
    place = torch.full_like(counts, -1).scatter_(0, held, torch.arange(len(held)).to(held))
    if kind == "logit-adjusted":
        prior = balance * shares.log()
        return lambda logits, labels: F.cross_entropy(
            logits[:, held] + prior, place[labels], label_smoothing=smoothing
        )
    # Of the shard's only class there is no other image.
    others = (1 - shares).clamp_min(torch.finfo(shares.dtype).tiny)
    yes, no = (0.5 / shares) ** balance, (0.5 / others) ** balance

    def one_vs_all(logits: Tensor, labels: Tensor) -> Tensor:
        own = held == labels.unsqueeze(1)  # [B, held]
        answers = own.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        weights = torch.where(own, yes, no).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits[:, held], answers, weights)

    return one_vs_all
