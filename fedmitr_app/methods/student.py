"""The student's training, the same for every method that distils."""

import itertools
import math

from torch import Tensor

from fedmitr_app.distillation import Distiller, initial_student
from fedmitr_app.errors import TrainingError
from fedmitr_app.inversion import PoolData
from fedmitr_app.methods.task import Task
from fedmitr_app.models import PatchViT
from fedmitr_app.randomness import generator
from fedmitr_app.reporting.progress import Progress
from fedmitr_app.teacher import Teacher

CHOOSING_IMAGES = 256


class StudentTraining:
    """One student, trained in one or several goes on a pool that may grow.

    Parameters
    ----------
    task : Task
        Its teacher teaches, its ``distillation`` settings say how.
    images : Tensor
        Synthetic images ``[n, C, H, W]``: a first look for ``distillation.student =
        "best-client"``.
    """

    def __init__(self, task: Task, images: Tensor) -> None:
        self._task = task
        config, sample = task.settings.distillation, images[:CHOOSING_IMAGES]
        first = initial_student(
            config.student, task.model, task.clients, task.average, task.teacher, sample
        )
        rng = generator(task.settings.seed, "distillation")
        self._distiller = Distiller(first.to(task.device), task.teacher, config, rng)
        self._numbers = itertools.count()
        self.losses: list[float] = []

    @property
    def model(self) -> PatchViT:
        """The student so far."""
        return self._distiller.student

    def learn_from(self, teacher: Teacher) -> None:
        """Have another teacher from the next step on, where a method's changes on the way."""
        self._distiller.teacher = teacher

    def go_on(self, pool: PoolData, steps: int) -> None:
        """Take some more of the ``distillation.steps``.

        Raises
        ------
        TrainingError
            If the loss leaves the finite numbers.
        """
        task, config = self._task, self._task.settings.distillation
        stage = f"{task.label}distillation"
        with Progress(stage, steps, "steps", images_per_unit=config.batch_size) as progress:

            def on_step(loss: Tensor) -> None:
                progress.advance(loss=loss)
                task.record("distillation", step=next(self._numbers), loss=loss)

            self.losses += self._distiller.run(pool, steps, on_step)
        if not all(math.isfinite(loss) for loss in self.losses):
            raise diverged("distillation", config.learning_rate)

    def finish(self) -> PatchViT:
        """Return the student, ready to use."""
        return self.model.requires_grad_(True).eval()


def diverged(stage: str, learning_rate: float) -> TrainingError:
    """Return the error for a stage whose numbers became infinite or not a number."""
    return TrainingError(
        f"{stage}.learning-rate = {learning_rate:g} made {stage} leave the finite numbers: "
        "lower it."
    )


def share(total: int, turn: int, turns: int) -> int:
    """Return the turn's part of a whole that is split as evenly as integers allow."""
    return total * (turn + 1) // turns - total * turn // turns
