"""What every one-shot method gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fedmitr_app.config import InversionConfig
from fedmitr_app.models import PatchViT
from fedmitr_app.teacher import Teacher


@dataclass(frozen=True)
class HeldOut:
    """How far two models are from the teacher on images that the student didn't learn from.

    Mean Kullback-Leibler divergence of the teacher's class probabilities from a model's.
    """

    images: int
    start: float
    """Of the model that the student started from."""
    student: float

    @property
    def start_returned(self) -> bool:
        """Whether the start is what the method returns: it was nearer."""
        return not self.student <= self.start


@dataclass(frozen=True)
class MethodResult:
    """What a method made of the uploads."""

    model: PatchViT | None
    """The global model; None if the method has none, as the bare ensemble."""
    teacher: Teacher | None = None
    """What taught it, or what answers in its place."""
    images: int = 0
    """Synthetic images made; they are in the task's ``pool``."""
    dropped: int = 0
    """Images that came to nothing, and are not there."""
    inversion: InversionConfig | None = None
    """How they were made, if they were inverted or come from starting images."""
    inversion_curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    distillation_loss: Sequence[float] = ()
    """One number a step of the student."""
    held_out: HeldOut | None = None
    """Whether the student was better than its start; None if nothing was held out."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What its stages took, by name."""

    def predict(self, images: Tensor) -> Tensor:
        """Class logits ``[B, classes]`` of model input ``[B, C, H, W]``."""
        if self.model is not None:
            return self.model(images).logits
        assert self.teacher is not None  # which answers where there is no model
        return self.teacher(images).logits
