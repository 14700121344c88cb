"""Accuracy on a held-out set, and what nodes say of theirs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmitr_app.models import InputSpec

Predict = Callable[[Tensor], Tensor]

# Named for what they are: the second is no measure of how the model does on other images.
HELD_OUT, TRAINED_ON = "accuracy-on-hold-out", "accuracy-on-training-shard"


@dataclass(frozen=True)
class FederatedScore:
    """The mean of what nodes measured on images of their own.

    Parameters
    ----------
    value : float
        A share in [0, 1], or what else the clients' metric is.
    nodes : int
        How many it is the mean of.
    images : int | None
        How many those nodes say that it rests on; None if one said what can't be.
    """

    value: float
    nodes: int
    images: int | None


@torch.no_grad()
def answers(
    predict: Predict,
    images: Tensor,
    spec: InputSpec,
    *,
    device: torch.device,
    batch_size: int = 256,
    on_batch: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """Return the logits of uint8 images ``[n, C, H, W]``, ``[n, classes]``, on the CPU."""
    parts = []
    for pixels in images.split(batch_size):
        parts.append(predict(spec.normalise(pixels.to(device))).cpu())
        on_batch(len(pixels))
    return torch.cat(parts)


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Return the share of images whose highest logit is at their label."""
    return int((logits.argmax(-1) == labels).sum()) / max(len(labels), 1)


def accuracy(
    predict: Predict,
    images: Tensor,
    labels: Tensor,
    spec: InputSpec,
    *,
    device: torch.device,
    batch_size: int = 256,
    on_batch: Callable[[int], object] = lambda count: None,
) -> float:
    """Return the share of images whose highest logit is at their label.

    Parameters
    ----------
    predict : Callable[[Tensor], Tensor]
        Normalised images ``[B, C, H, W]`` to logits ``[B, classes]``.
    images, labels : Tensor
        uint8 ``[n, C, H, W]`` and int64 ``[n]``.
    on_batch : Callable[[int], object]
        Gets how many more images are done.
    """
    logits = answers(predict, images, spec, device=device, batch_size=batch_size, on_batch=on_batch)
    return share_right(logits, labels)
