"""The accuracies that stand beside the student's, all on one held-out test set.

The test set only measures, after the last step of everything: it chooses nothing.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedmitr_app.evaluation import answers, share_right
from fedmitr_app.models import PatchViT
from fedmitr_app.teacher import ClientModel, Teacher


class AccuracyBench:
    """A test set and how to score on it.

    Parameters
    ----------
    images, labels : Tensor
        uint8 ``[n, C, H, W]`` and int64 ``[n]``.
    model : PatchViT
        Its architecture and input spec; its weights don't matter.
    device : torch.device
        Where to score.
    batch_size : int
        Images per forward pass.
    on_batch : Callable[[int], object]
        Gets how many more images were shown to a model.
    """

    __test__ = False  # not a test case, whatever pytest makes of its name

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        model: PatchViT,
        device: torch.device,
        batch_size: int,
        on_batch: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.images, self.labels = images, labels
        self.model, self.device, self.batch_size = model, device, batch_size
        self.on_batch = on_batch
        self._answers: dict[PatchViT, Tensor] = {}

    def model_accuracy(self, model: PatchViT) -> float:
        """Score one model."""
        return self._right(self.logits_of(model))

    def teacher_accuracy(self, teacher: Teacher) -> float:
        """Score the ensemble, without running again those of its models that were scored."""
        each = torch.stack([self.logits_of(model) for model in teacher.models])
        device = teacher.class_weights.device
        combined = [
            teacher.combine_logits(part.to(device)) for part in each.split(self.batch_size, 1)
        ]
        return self._right(torch.cat(combined))

    def logits_of(self, model: PatchViT) -> Tensor:
        """Return a model's logits of all images, ``[n, classes]``, on the CPU; asked once."""
        if model not in self._answers:
            self._answers[model] = self._ask(model)
        return self._answers[model]

    def knows(self, model: PatchViT) -> bool:
        """Say whether a model's logits are there."""
        return model in self._answers

    def know(self, model: PatchViT, logits: Tensor) -> None:
        """Take a model's logits of all images from elsewhere."""
        self._answers[model] = logits

    def _ask(self, model: PatchViT) -> Tensor:
        return answers(
            lambda images: model(images).logits,
            self.images,
            self.model.spec,
            device=self.device,
            batch_size=self.batch_size,
            on_batch=self.on_batch,
        )

    def _right(self, logits: Tensor) -> float:
        return share_right(logits.cpu(), self.labels)

    def state_accuracy(self, state: Mapping[str, Tensor]) -> float:
        """Score a state dict under timm's keys."""
        model = copy.deepcopy(self.model).to(self.device)
        model.vit.load_state_dict(state)
        return self._right(self._ask(model.eval()))  # it is gone then: nothing to remember

    def compare(
        self,
        clients: Sequence[ClientModel],
        teacher: Teacher | None,
        average: Mapping[str, Tensor],
        control: PatchViT | None,
    ) -> dict[str, Any]:
        """Return what stands beside the student in ``metrics.json``'s ``accuracy``."""
        return {
            "control": None if control is None else self.model_accuracy(control),
            "teacher": None if teacher is None else self.teacher_accuracy(teacher),
            "fedavg": self.state_accuracy(average),
            "clients": {client.key: self.model_accuracy(client.model) for client in clients},
        }
