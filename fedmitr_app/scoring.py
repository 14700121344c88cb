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

MOST_CONFUSIONS = 10_000
"""Pairs of classes that are kept: all of a hundred classes."""


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
        self._named: dict[str, Tensor] = {}

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
        return self._right(torch.cat(combined), "teacher")

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

    def _right(self, logits: Tensor, name: str = "") -> float:
        if name:
            self._named[name] = logits.cpu().argmax(-1)
        return share_right(logits.cpu(), self.labels)

    def by_class(self) -> dict[str, list[Any]]:
        """Return what ``student``, ``teacher`` and ``fedavg`` got right of each class.

        Of those that were scored: a list of counts, ``[classes]``, each, and beside them
        ``images``, how many there are. ``confusions`` are the student's, without it the
        teacher's: ``[label, answer, how often]``, most often first, at most
        ``MOST_CONFUSIONS``.
        """
        if not self._named:
            return {}
        classes = self.model.num_classes
        found: dict[str, list[Any]] = {"images": self._counted(self.labels, classes)}
        for name, answered in self._named.items():
            found[name] = self._counted(self.labels[answered == self.labels], classes)
        said = self._named.get("student", self._named.get("teacher"))
        if said is not None:
            wrong = said != self.labels
            pairs = torch.stack([self.labels[wrong], said[wrong]], 1)
            different, counts = pairs.unique(dim=0, return_counts=True)
            often = counts.argsort(descending=True, stable=True)[:MOST_CONFUSIONS]
            found["confusions"] = torch.cat([different, counts[:, None]], 1)[often].tolist()
        return found

    @staticmethod
    def _counted(labels: Tensor, classes: int) -> list[int]:
        return torch.bincount(labels, minlength=classes).tolist()

    def state_accuracy(self, state: Mapping[str, Tensor], name: str = "") -> float:
        """Score a state dict under timm's keys; a ``name`` has :meth:`by_class` know it."""
        model = copy.deepcopy(self.model).to(self.device)
        model.vit.load_state_dict(state)
        return self._right(self._ask(model.eval()), name)  # it is gone then: nothing to remember

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
            "fedavg": self.state_accuracy(average, "fedavg"),
            "clients": {client.key: self.model_accuracy(client.model) for client in clients},
        }
