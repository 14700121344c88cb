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
    correct = 0
    for pixels, truth in zip(images.split(batch_size), labels.split(batch_size)):
        logits = predict(spec.normalise(pixels.to(device)))
        correct += int((logits.argmax(-1).cpu() == truth).sum())
        on_batch(len(truth))
    return correct / max(len(labels), 1)
