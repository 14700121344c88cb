"""The student's gap between the synthetic images it learnt from and real ones.

The paper's summaries claim a tighter generalisation bound; the gap that such a bound bounds is
measured here. Synthetic images, which nobody has labels for, are scored by the teacher's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmitr_app.diagnostics.error_bars import part_means, without_each
from fedmitr_app.models import InputSpec, PatchViT
from fedmitr_app.teacher import Teacher
from fedmitr_app.utils.randomness import generator


@dataclass(frozen=True)
class Gap:
    """A student on its pool and on real test images.

    Attributes
    ----------
    pool_accuracy, pool_loss : float
        Agreement with the teacher's likeliest class, and the cross-entropy with it.
    test_accuracy, test_loss : float
        The same with the true labels of real images.
    left_out : Mapping[str, tuple[float, ...]]
        The four, by name, without each part of their images in turn.
    """

    pool_accuracy: float
    pool_loss: float
    test_accuracy: float
    test_loss: float
    left_out: Mapping[str, tuple[float, ...]]

    @property
    def accuracy(self) -> float:
        """By how much the student is better on its pool, a difference of shares."""
        return self.pool_accuracy - self.test_accuracy

    @property
    def loss(self) -> float:
        """By how much its loss is greater on real images, in nats."""
        return self.test_loss - self.pool_loss


@torch.no_grad()
def gap(
    student: PatchViT,
    teacher: Teacher,
    pool_images: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    spec: InputSpec,
    seed: int,
    *,
    batch_size: int = 256,
) -> Gap:
    """Score a student on its pool and on a test set.

    Parameters
    ----------
    pool_images : Tensor
        Model input ``[n, C, H, W]``, on the models' device, as they are: no views, no mixup.
    test_images, test_labels : Tensor
        uint8 ``[m, C, H, W]`` and int64 ``[m]``, on any device.
    seed : int
        Of the run: deals the images to parts, the same test images alike for every student.
    """
    device = pool_images.device
    seen = ((part, teacher(part).logits.argmax(-1)) for part in pool_images.split(batch_size))
    real = (
        (spec.normalise(part.to(device)), labels.to(device))
        for part, labels in zip(
            test_images.split(batch_size), test_labels.split(batch_size), strict=True
        )
    )
    values = {
        f"{where}_{what}": each
        for where, batches in (("pool", seen), ("test", real))
        for what, each in zip(("accuracy", "loss"), _scored(student, batches), strict=True)
    }
    left_out = {
        name: without_each(part_means(each, generator(seed, "diagnosis", "parts")))
        for name, each in values.items()
    }
    means = {name: float(each.double().mean()) for name, each in values.items()}
    return Gap(**means, left_out=left_out)


def _scored(student: PatchViT, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return whether each image is classified right, and its cross-entropy, ``[n]``."""
    right, losses = [], []
    for images, labels in batches:
        logits = student(images).logits
        right.append(logits.argmax(-1) == labels)
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
    return torch.cat(right), torch.cat(losses)
