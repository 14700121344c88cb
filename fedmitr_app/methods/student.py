"""The student's training, the same for every method that distils."""

import itertools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmitr_app.distillation import Distiller, initial_student
from fedmitr_app.distillation.distil import MAX_FALLS
from fedmitr_app.distillation.losses import soft_label_loss
from fedmitr_app.errors import RunFolderError
from fedmitr_app.inversion import PoolData
from fedmitr_app.methods.result import HeldOut
from fedmitr_app.methods.settings import MethodSettings
from fedmitr_app.methods.task import Task
from fedmitr_app.models import PatchViT
from fedmitr_app.teacher import Teacher
from fedmitr_app.utils.files import Stored, load_tensors, save_tensors
from fedmitr_app.utils.progress import Progress, headline
from fedmitr_app.utils.randomness import generator

_log = logging.getLogger(__name__)

CHECKPOINT = "distillation.safetensors"
"""In the task's folder; of no use once the run is over."""
CHOOSING_IMAGES = 256
# A checkpoint is three times the model: written often enough that little is lost, and seldom
# enough that nobody notices.
CHECKPOINT_SECONDS = 30.0
_DRAWS = "draws"
_FACTS = {"origin", "pool", "done", "falls", "losses", "seconds"}


class StudentTraining:
    """One student, trained in one or several goes on a pool that may grow.

    Parameters
    ----------
    task : Task
        Its teacher teaches, its ``distillation`` settings say how.
    images : Tensor
        Synthetic images ``[n, C, H, W]``: a first look for ``distillation.student =
        "best-client"``.
    checkpoint : Path | None
        A file to write now and then, and to go on from if a run that was stopped left it, for a
        student trained in one go; None writes nothing. On a CPU the student is the same to the
        last bit.
    shards : Sequence[str]
        Digests of the pool's shards that were there when this run began: a checkpoint that was
        trained on others is of no use.
    stage : str
        Names its draws, its progress lines and its records.
    """

    def __init__(
        self,
        task: Task,
        images: Tensor,
        checkpoint: Path | None = None,
        shards: Sequence[str] = (),
        *,
        stage: str = "distillation",
    ) -> None:
        self._task, self._stage = task, stage
        config, first = task.settings.distillation, self._start(images)
        self._rng = generator(task.settings.seed, stage)
        self._distiller = Distiller(first, task.teacher, config, self._rng)
        self._checkpoint = checkpoint
        self._left = self._left_behind(shards)
        self.losses: list[float] = []
        self.seconds = 0.0

    @property
    def model(self) -> PatchViT:
        """The student so far."""
        return self._distiller.student

    def learn_from(self, teacher: Teacher) -> None:
        """Have another teacher from the next step on, where a method's changes on the way."""
        self._distiller.teacher = teacher

    def go_on(self, pool: PoolData, steps: int) -> None:
        """Take some more of the ``distillation.steps``, on all but the images held out.

        Raises
        ------
        TrainingError
            If the loss leaves the finite numbers.
        """
        task, config = self._task, self._task.settings.distillation
        done = self._take_up()
        draws, before = self._rng.get_state(), self.seconds
        started = saved = time.monotonic()
        fresh: list[Tensor] = []

        def on_step(loss: Tensor) -> None:
            progress.advance(loss=loss)
            task.record(self._stage, step=next(numbers), loss=loss)
            fresh.append(loss)

        def on_good(reached: int) -> None:
            nonlocal saved
            now = time.monotonic()
            if self._checkpoint is None or (now - saved < CHECKPOINT_SECONDS and reached < steps):
                return
            saved = now
            facts = {
                "origin": task.origin,
                "pool": pool.digests,
                "done": reached,
                "falls": self._distiller.falls,
                "losses": [*self.losses, *(float(loss) for loss in fresh)],
                "seconds": before + now - started,
            }
            save_tensors(self._checkpoint, {**self._distiller.state(), _DRAWS: draws}, facts)

        numbers, label = itertools.count(len(self.losses)), f"{task.label}{self._stage}"
        with Progress(label, steps - done, "steps", images_per_unit=config.batch_size) as progress:
            self._distiller.run(self._split(pool)[0], steps, on_step, done, on_good)
        self.losses += [float(loss) for loss in fresh]
        self.seconds = before + time.monotonic() - started

    def _take_up(self) -> int:
        """Return how many of the steps were taken before, by a run that was stopped."""
        left, self._left = self._left, None
        if left is None:
            return 0
        tensors = dict(left.tensors)
        self._rng.set_state(tensors.pop(_DRAWS))
        # JSON has no NaN: a step that was taken back has null.
        self.losses = [math.nan if loss is None else loss for loss in left.facts["losses"]]
        self.seconds = left.facts["seconds"]
        self._distiller.restore(tensors, len(self.losses), left.facts["falls"])
        done: int = left.facts["done"]
        label = f"{self._task.label}{self._stage}"
        headline(f"{label}: goes on after {len(self.losses)} steps")
        return done

    def _left_behind(self, shards: Sequence[str]) -> Stored | None:
        """Read what a run that was stopped left; None if that is nothing, or of no use."""
        checkpoint = self._checkpoint
        if checkpoint is None or not checkpoint.exists():
            return None
        try:
            left = load_tensors(checkpoint)
            state = {name: value for name, value in left.tensors.items() if name != _DRAWS}
            steps = self._task.settings.distillation.steps
            wrong = _wrong_with(left.facts, steps)
            if wrong or not _is_state(left.tensors.get(_DRAWS)):
                raise RunFolderError(f"{checkpoint} is no checkpoint of a distillation.")
            if not self._distiller.takes(state):
                raise RunFolderError(f"{checkpoint} is a checkpoint of another student.")
        except RunFolderError as error:
            _log.warning("%s The distillation is begun anew.", error)
            return None
        trained_on = left.facts["pool"]
        fits = trained_on == list(shards[: len(trained_on)])
        return left if fits and left.facts["origin"] == self._task.origin else None

    def finish(self, pool: PoolData) -> tuple[PatchViT, HeldOut | None]:
        """Return a model that is ready to use: the student, or its start if that was better.

        Better is what is nearer to the teacher on the images held out (choice).
        """
        student, unseen = self.model.requires_grad_(True).eval(), self._split(pool)[1]
        if not len(unseen):
            return student, None
        start = self._start(pool.images).requires_grad_(True).eval()
        images, teacher = unseen.images, self._distiller.teacher
        chunks = images.split(self._task.settings.distillation.batch_size)
        answers = [(chunk, teacher(chunk).logits) for chunk in chunks]
        found = HeldOut(len(images), _divergence(start, answers), _divergence(student, answers))
        if not found.start_returned:
            return student, found
        _log.warning(
            "On %d images that it did not learn from the student is further from the teacher "
            "(divergence %.3f) than the model that it started from (%.3f): that model is returned. "
            "Fewer distillation.steps or a lower distillation.learning-rate harm less.",
            found.images,
            found.student,
            found.start,
        )
        return start, found

    def _start(self, images: Tensor) -> PatchViT:
        task = self._task
        return initial_student(
            task.settings.distillation.student,
            task.model,
            task.clients,
            task.merged,
            task.teacher,
            images[:CHOOSING_IMAGES],
        ).to(task.device)

    def _split(self, pool: PoolData) -> tuple[PoolData, PoolData]:
        """Return what is learnt from, and what is held out: the last ones, of all classes alike."""
        share = self._task.settings.distillation.holdout
        first = len(pool) - int(len(pool) * share)
        return pool.part(slice(first)), pool.part(slice(first, None))


@torch.no_grad()
def _divergence(model: PatchViT, answers: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean KL divergence of a teacher's answers from a model's to the same images."""
    parts = [soft_label_loss(model(images).logits, told, 1.0) for images, told in answers]
    return float(torch.cat(parts).mean())


def adversary(task: Task, images: Tensor, turns: int) -> StudentTraining:
    """Return the training of the student that images are made against, turn by turn.

    It takes an even share of the ``distillation.steps`` after each turn but the last, on the pool
    so far (:func:`share`), under a schedule of its own; the student that a method returns is
    another one, distilled on the finished pool with all the steps, as every method's (choice:
    DENSE and Co-Boosting return the adversary itself, after hundreds of turns at one rate; with
    a few turns under one schedule it hardly learns from the last ones' images).
    """
    steps = sum(share(task.settings.distillation.steps, turn, turns) for turn in range(turns - 1))

    def shortened(ours: MethodSettings) -> MethodSettings:
        return replace(ours, distillation=replace(ours.distillation, steps=steps, holdout=0.0))

    return StudentTraining(task.alter(shortened), images, stage="adversary")


def _wrong_with(facts: dict[str, Any], steps: int) -> bool:
    """Say whether facts can't be a checkpoint's: it may be damaged, or somebody else's."""
    if facts.keys() != _FACTS:
        return True
    losses, pool, seconds = facts["losses"], facts["pool"], facts["seconds"]
    if not isinstance(losses, list) or not isinstance(pool, list):
        return True
    limits = {"done": len(losses), "falls": MAX_FALLS}
    return not (
        len(losses) <= steps
        and all(isinstance(facts[name], int) for name in limits)
        and all(0 <= facts[name] <= most for name, most in limits.items())
        and all(loss is None or isinstance(loss, (int, float)) for loss in losses)
        and isinstance(seconds, (int, float))
    )


def _is_state(draws: Tensor | None) -> bool:
    if draws is None:
        return False
    try:
        torch.Generator().set_state(draws)
    except (RuntimeError, TypeError):
        return False
    return True


def share(total: int, turn: int, turns: int) -> int:
    """Return the turn's part of a whole that is split as evenly as integers allow."""
    return total * (turn + 1) // turns - total * turn // turns
