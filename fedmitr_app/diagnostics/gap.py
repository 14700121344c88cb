"""The student's gap between the synthetic images it learnt from and real ones.

The paper's summaries claim a tighter generalisation bound; the gap that such a bound bounds is
measured here. Synthetic images, which nobody has labels for, are scored by the teacher's.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmitr_app.models import InputSpec, PatchViT
from fedmitr_app.teacher import Teacher


@dataclass(frozen=True)
class Gap:
    """A student on its pool and on real test images.

    Attributes
    ----------
    pool_accuracy, pool_loss : float
        Agreement with the teacher's likeliest class, and the cross-entropy with it.
    test_accuracy, test_loss : float
        The same with the true labels of real images.
    """

    pool_accuracy: float
    pool_loss: float
    test_accuracy: float
    test_loss: float

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
    """
    device = pool_images.device
    seen = ((part, teacher(part).logits.argmax(-1)) for part in pool_images.split(batch_size))
    real = (
        (spec.normalise(part.to(device)), labels.to(device))
        for part, labels in zip(test_images.split(batch_size), test_labels.split(batch_size))
    )
    return Gap(*_scored(student, seen), *_scored(student, real))


def _scored(student: PatchViT, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy."""
    right, loss, count = 0, 0.0, 0
    for images, labels in batches:
        logits = student(images).logits
        right += int((logits.argmax(-1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        count += len(labels)
    return right / max(count, 1), loss / max(count, 1)
