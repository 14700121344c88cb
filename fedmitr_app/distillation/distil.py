"""Distil the teacher into one student on the pool of synthetic images.

FedMITR's second half: high-density patches take the pseudo-label, low-density ones are
relabelled by the ensemble (stated); the student sees all patches (stated).
"""

import logging
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedmitr_app.config import DistillationConfig
from fedmitr_app.distillation.batches import Batch, draw_recipe
from fedmitr_app.distillation.losses import class_loss, token_loss
from fedmitr_app.distillation.soft_labels import KeptBatch, SoftLabels, ask
from fedmitr_app.distillation.students import choose_trainable
from fedmitr_app.errors import TrainingError
from fedmitr_app.inversion.pool import PoolData
from fedmitr_app.models import PatchViT
from fedmitr_app.teacher import Teacher
from fedmitr_app.training import parameter_groups
from fedmitr_app.training.schedule import resume_schedule, warmup_cosine
from fedmitr_app.utils.memory import Halving

logger = logging.getLogger(__name__)

STEPS_BETWEEN_CHECKS = 50
MAX_FALLS = 3

Losses = Callable[[slice], Tensor]
"""Gives the losses of some images of a batch, ``[b]``."""


class Distiller:
    """A student's training, which can be done in several runs over a growing pool.

    Parameters
    ----------
    student : PatchViT
        Trained in place, on its own device.
    teacher : Teacher
        Frozen, on the same device.
    config : DistillationConfig
        ``steps`` counts all runs together.
    rng : torch.Generator
        On the CPU.
    """

    def __init__(
        self,
        student: PatchViT,
        teacher: Teacher,
        config: DistillationConfig,
        rng: torch.Generator,
    ) -> None:
        self.student, self.teacher, self.config, self.rng = student, teacher, config, rng
        choose_trainable(student, config)
        groups = parameter_groups(student, config.weight_decay)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.scheduler = warmup_cosine(self.optimiser, config.steps, config.warmup)
        self.falls = 0
        self._halving = Halving("distilling")

    def run(
        self,
        pool: PoolData,
        steps: int,
        on_step: Callable[[Tensor], None] | None = None,
        done: int = 0,
        on_good: Callable[[int], None] | None = None,
    ) -> list[float]:
        """Take ``steps`` steps on ``pool`` and return the loss of each one that was taken.

        The first ``done`` of them were taken before, by a run that was stopped: what they drew
        is drawn again, and nothing else is done (see :meth:`state`). ``on_good`` hears now and
        then, and at the end, how many steps led to a student that is sound.

        The first ``steps / repeats`` batches are drawn and shown to the teacher; then they are
        gone through again in new orders, with the teacher's answers kept (choice: more steps
        for the same teacher's work). Answers to tokens are kept in half precision, batches as
        what they are made of: only their numbers stay in memory, not their pixels. Where the
        head alone is trained and no token is, the student's features stay too, and a batch
        that comes again passes through the head alone.

        When the loss or a weight leaves the finite numbers, the student goes back to its last
        good state, and on from there with the next batches at half the rate (choice).

        Raises
        ------
        TrainingError
            If that happens more than ``MAX_FALLS`` times in all.
        """
        fresh = math.ceil(steps / self.config.repeats)
        kept: list[KeptBatch] = []
        order: list[int] = []
        losses: list[Tensor] = []
        good, reached = _copied(self.state()), self.scheduler.last_epoch
        between = max(1, min(STEPS_BETWEEN_CHECKS, steps // 10))
        self.student.train()
        for step in range(steps):
            if step < fresh:
                kept_batch = KeptBatch(draw_recipe(pool, self.config, self.rng))
                if fresh < steps:
                    kept.append(kept_batch)
            else:
                order = order or torch.randperm(fresh, generator=self.rng).tolist()
                kept_batch = kept[order.pop()]
            if step < done:
                continue
            loss = self._backward(self._losses(kept_batch, pool))
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            self.scheduler.step()
            losses.append(loss)
            if on_step:
                on_step(losses[-1])
            if (step + 1) % between and step + 1 < steps:
                continue
            if self._finite(losses[-between:]):
                good, reached = _copied(self.state()), self.scheduler.last_epoch
                if on_good:
                    on_good(step + 1)
            else:
                now = self.scheduler.last_epoch
                self._fall(good, reached)
                resume_schedule(self.scheduler, now)
        self.student.eval()
        return torch.stack(losses).tolist() if losses else []

    def _losses(self, kept_batch: KeptBatch, pool: PoolData) -> Losses:
        """Return what gives some images' losses; what can't change is worked out once."""
        if not self.still:
            batch = kept_batch.recipe.make(pool)
            labels = kept_batch.labels or self.ask(batch).compact()
            kept_batch.labels = labels
            return lambda rows: self.loss(batch.part(rows), labels.part(rows))
        if kept_batch.features is None:
            batch = kept_batch.recipe.make(pool)
            kept_batch.labels, kept_batch.targets = self.ask(batch), batch.targets
            with torch.no_grad():
                kept_batch.features = torch.cat(
                    self._halving.over(
                        len(batch.images), lambda rows: self.student(batch.images[rows]).features
                    )
                )
        features, targets, answers = kept_batch.features, kept_batch.targets, kept_batch.labels
        assert targets is not None and answers is not None  # kept together with the features
        logits = answers.logits
        return lambda rows: self._class_loss(
            self.student.vit.head(features[rows]), logits[rows], targets[rows]
        )

    def _backward(self, losses: Losses) -> Tensor:
        """Differentiate a batch's mean loss."""
        count = self.config.batch_size

        def differentiate(rows: slice) -> Tensor:
            if rows.start == 0:
                self.optimiser.zero_grad(set_to_none=True)
            loss = losses(rows).sum() / count
            loss.backward()
            return loss.detach()

        return torch.stack(self._halving.over(count, differentiate)).sum()

    def _finite(self, losses: list[Tensor]) -> bool:
        parts = [torch.stack(losses), *self.parameters]
        return bool(torch.stack([part.detach().isfinite().all() for part in parts]).all())

    def _fall(self, good: Mapping[str, Tensor], reached: int) -> None:
        if self.falls == MAX_FALLS:
            raise TrainingError.diverged("distillation", self.config.learning_rate)
        logger.warning(
            "distillation left the finite numbers: back to the student of step %d, and on at half "
            "the learning rate.",
            reached,
        )
        self.restore(good, reached, self.falls + 1)

    def state(self) -> dict[str, Tensor]:
        """Return what :meth:`restore` needs to go on from here, but for the generator."""
        tensors = {f"student.{key}": value for key, value in self.student.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{key}": value for key, value in moments.items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor], steps: int, falls: int) -> None:
        """Go back to a :meth:`state` that was reached after ``steps`` steps and ``falls``."""
        self.falls = falls
        rate = self.config.learning_rate * 0.5**falls
        self.scheduler.base_lrs = [rate] * len(self.scheduler.base_lrs)
        parts: dict[str, dict[str, Tensor]] = {"student": {}, "optimiser": {}}
        for name, value in tensors.items():
            part, _, key = name.partition(".")
            parts[part][key] = value
        self.student.load_state_dict(parts["student"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimiser"].items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        resume_schedule(self.scheduler, steps)

    def takes(self, tensors: Mapping[str, Tensor]) -> bool:
        """Say whether a distiller like this gives such a :meth:`state`, with finite values."""
        state = {n: v for n, v in self.state().items() if not n.startswith("optimiser.")}
        for number, parameter in enumerate(self.parameters):
            kinds = {"exp_avg": parameter, "exp_avg_sq": parameter, "step": torch.tensor(0.0)}
            moments = {f"optimiser.{number}.{key}": value for key, value in kinds.items()}
            if moments.keys() & tensors.keys():  # a parameter without a gradient has none
                state |= moments
        return state.keys() == tensors.keys() and all(
            value.shape == state[name].shape
            and value.dtype == state[name].dtype
            and bool(value.isfinite().all())
            for name, value in tensors.items()
        )

    @property
    def still(self) -> bool:
        """Whether a batch's features never change: there is nothing but the head to train."""
        return self.config.train == "head" and not self.with_tokens

    @property
    def with_tokens(self) -> bool:
        """Whether the loss has a token term."""
        return self.config.relabel != "none" and self.config.beta > 0

    def ask(self, batch: Batch) -> SoftLabels:
        """Ask the ensemble about a batch."""
        return ask(self.teacher, batch, self.config.relabel if self.with_tokens else "none")

    def loss(self, batch: Batch, labels: SoftLabels | None = None) -> Tensor:
        """Return the decoupled loss of a batch, per image ``[B]``; ask the teacher if need be."""
        config = self.config
        labels = labels or self.ask(batch)
        seen = self.student(batch.images, patch_tokens=self.with_tokens)
        loss = self._class_loss(seen.logits, labels.logits, batch.targets)
        if not self.with_tokens:
            return loss
        # With no dropped patch there is nothing to relabel, and with no survivor that is
        # all there is: both happen (dense schedule; the control).
        patch_logits = self.student.vit.head(self.student.vit.fc_norm(seen.patch_tokens))
        assert labels.relabels is not None  # asked for, as the tokens are
        relabels = labels.relabels.to(patch_logits.dtype)
        term = token_loss(
            patch_logits, batch.targets, batch.mask, relabels, config.gamma, config.tau
        )
        return loss + config.beta * term

    def _class_loss(self, logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
        config = self.config
        return class_loss(logits, teacher_logits, targets, config.temperature, config.hard)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
