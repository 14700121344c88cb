"""Accuracy on a held-out set."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedmitr_app.models import InputSpec

Predict = Callable[[Tensor], Tensor]


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
