"""The inversion's objective and its gradient with respect to the alive patches.

Two ways to the same gradient. ``joint`` keeps the graphs of all K models at once.
``frugal`` first runs every model without a graph, differentiates the combination with
respect to the K outputs, then runs the models again one by one and pulls that gradient
back: memory of one model, one more forward. Where each client has its own loss
(``inversion.loss = "per-teacher"``) one pass suffices and only one graph ever lives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fedmitr_app.config import InversionConfig
from fedmitr_app.inversion.losses import (
    cross_entropy,
    feature_distance,
    jensen_shannon,
    patch_similarity_entropy,
)
from fedmitr_app.inversion.serving import Serving
from fedmitr_app.models import PatchViT, ViTOutput
from fedmitr_app.teacher import Teacher


class Gradient(NamedTuple):
    """The objective at one view of a batch."""

    loss: Tensor
    """Per image, ``[B]``, without total variation."""
    grad: Tensor
    """With respect to the viewed patches, ``[B, n, C*p*p]``."""
    logits: Tensor
    """The teacher's combined logits, ``[B, classes]``; of those that were asked, if some were."""
    cls_attn: Tensor | None
    """Each client's class attention, ``[K, B, n]``, if asked for."""


def draw_asked(
    teacher: Teacher, config: InversionConfig, batch: int, generator: torch.Generator
) -> Tensor | None:
    """Draw which ``teachers_per_step`` clients each image asks in this step, ``[K, B]`` bool.

    All are as likely, so that what they say, K / ``teachers_per_step`` times, is everybody's in
    the mean: an unbiased gradient (choice). ``None``: everybody is asked.
    """
    clients, some = len(teacher.models), config.teachers_per_step
    if not 0 < some < clients:
        return None
    chosen = torch.rand(batch, clients, generator=generator).topk(some).indices
    return torch.zeros(batch, clients, dtype=torch.bool).scatter_(1, chosen, True).T


@dataclass(frozen=True)
class Objective:
    """CE(teacher, targets) plus the optional priors, for one batch of images.

    Parameters
    ----------
    teacher : Teacher
        Frozen.
    targets : Tensor
        Class probabilities ``[B, classes]``.
    config : InversionConfig
        ``loss``, ``gradient``, ``similarity``, ``feature_match`` and ``disagreement`` are read.
    members : Tensor, optional
        ``[K, B]`` bool: which clients serve which image.
    student : PatchViT, optional
        What ``disagreement`` pulls away from; without one it does nothing (first round).
    """

    teacher: Teacher
    targets: Tensor
    config: InversionConfig
    members: Tensor | None = None
    student: PatchViT | None = None

    def gradient(
        self,
        patches: Tensor,
        position_idx: Tensor,
        attention: bool = False,
        asked: Tensor | None = None,
    ) -> Gradient:
        """Evaluate at patches ``[B, n, C*p*p]`` standing at ``position_idx`` ``[B, n]``.

        ``asked``, ``[K, B]`` bool on the CPU, says whose losses stand for everybody's in this
        step, where each client has its own (see :func:`draw_asked`).
        """
        patches = patches.detach().requires_grad_()
        if self.config.loss == "per-teacher":
            if asked is not None:
                return self._estimate(patches, position_idx, asked)
            weights = self.teacher.image_weights(self.targets, self.members)
            return self._one_by_one(patches, position_idx, attention, weights, self._serving)
        if self.config.gradient == "frugal" or self.teacher.visits:
            return self._frugal(patches, position_idx, attention)
        outputs = self._outputs(patches, position_idx, attention)
        logits = torch.stack([output.logits for output in outputs])
        loss, combined = self._combined(logits)
        priors = (self._prior(k, output, self.members) for k, output in enumerate(outputs))
        loss = loss + sum(priors)
        (grad,) = torch.autograd.grad(loss.sum(), patches)
        return Gradient(loss.detach(), grad, combined.detach(), self._attention(outputs))

    def part(self, rows: slice | Tensor) -> "Objective":
        """Return the objective of some of the batch's images."""
        members = None if self.members is None else self.members[:, rows]
        return replace(self, targets=self.targets[rows], members=members)

    def _frugal(self, patches: Tensor, position_idx: Tensor, attention: bool) -> Gradient:
        models = range(len(self._models))
        with torch.no_grad():
            outputs = [self._run(k, patches, position_idx, attention) for k in models]
        logits = torch.stack([output.logits for output in outputs]).requires_grad_()
        loss, combined = self._combined(logits)
        (upstream,) = torch.autograd.grad(loss.sum(), logits)
        loss, grad = loss.detach(), torch.zeros_like(patches)
        for k in models:
            output = self._run(k, patches, position_idx, False)
            prior = self._prior(k, output, self.members)
            pulled = (output.logits * upstream[k]).sum() + prior.sum()
            grad += torch.autograd.grad(pulled, patches)[0]
            loss = loss + prior.detach()
        return Gradient(loss, grad, combined.detach(), self._attention(outputs))

    def _estimate(self, patches: Tensor, position_idx: Tensor, asked: Tensor) -> Gradient:
        """Everybody's loss from those asked: each one's is taken that much more often."""
        device = patches.device
        # Looked up on the CPU, where they were drawn: a GPU would be waited for.
        rows = (who.nonzero().flatten() for who in asked)
        rows = tuple(each.to(device, non_blocking=True) for each in rows)
        members = asked.to(device, non_blocking=True)
        some = replace(self._serving, members=members, rows=rows)
        often = len(asked) / int(asked[:, 0].sum())  # on the CPU, too
        weights = often * members * self.teacher.image_weights(self.targets)
        return self._one_by_one(patches, position_idx, False, weights, some)

    def _one_by_one(
        self,
        patches: Tensor,
        position_idx: Tensor,
        attention: bool,
        weights: Tensor,
        serving: Serving,
    ) -> Gradient:
        """The clients' own losses, by ``weights`` ``[K, B]``: no graph outlives its model."""
        total, grad, outputs = torch.zeros_like(weights[0]), torch.zeros_like(patches), []
        for k in range(len(self.teacher.models)):
            output = serving.run(k, patches, position_idx, attention)
            loss = weights[k] * cross_entropy(output.logits, self.targets)
            loss = loss + self._prior(k, output, serving.members)
            grad += torch.autograd.grad(loss.sum(), patches)[0]
            total += loss.detach()
            outputs.append(ViTOutput(*(None if p is None else p.detach() for p in output)))
        logits = torch.stack([output.logits for output in outputs])
        combined = self.teacher.combine_logits(logits, serving.members)
        return Gradient(total, grad, combined, self._attention(outputs))

    @cached_property
    def _serving(self) -> Serving:
        return Serving(self.teacher.models, self.members, self._with_tokens)

    @property
    def _models(self) -> Sequence[PatchViT]:
        if self.config.disagreement > 0 and self.student is not None:
            return (*self.teacher.models, self.student)
        return self.teacher.models

    @property
    def _with_tokens(self) -> bool:
        """Whether a prior reads the patches' tokens."""
        return self.config.similarity > 0

    @property
    def may_stack(self) -> bool:
        """Whether models may run stacked: where that is asked for, or faster at some stage."""
        if self.config.loss == "per-teacher" or self.config.gradient == "frugal":
            return False
        by_choice = self.config.ensemble == "auto" and self.teacher.stackable
        return by_choice or self.config.ensemble == "stacked"

    def _outputs(
        self, patches: Tensor, position_idx: Tensor, attention: bool
    ) -> list[ViTOutput]:
        """Run every model on the images it serves, one by one or stacked."""
        clients, rest = len(self.teacher.models), range(len(self._models))
        outputs: list[ViTOutput] = []
        stack = self.teacher.stack if self._stacks(patches) else None
        if stack is not None:
            outputs = self._serving.run_stacked(stack, patches, position_idx, attention)
            rest = rest[clients:]
        return outputs + [self._run(k, patches, position_idx, attention) for k in rest]

    def _stacks(self, patches: Tensor) -> bool:
        always = self.config.ensemble == "stacked"
        return self.may_stack and (always or self._serving.stacking_pays(patches))

    def _run(self, k: int, patches: Tensor, position_idx: Tensor, attention: bool) -> ViTOutput:
        """Run model ``k``; the last one may be the student, who sees every image."""
        if k < len(self.teacher.models):
            return self._serving.run(k, patches, position_idx, attention)
        return self.student.forward_patches(
            patches, position_idx, attention=attention, patch_tokens=self._with_tokens
        )

    def _combined(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss ``[B]`` and combined logits from the outputs of every model."""
        clients = len(self.teacher.models)
        combined = self.teacher.combine_logits(logits[:clients], self.members)
        loss = cross_entropy(combined, self.targets)
        if len(logits) > clients:
            loss = loss - self.config.disagreement * jensen_shannon(logits[clients], combined)
        return loss, combined

    def _prior(self, k: int, output: ViTOutput, members: Tensor | None) -> Tensor:
        """Client ``k``'s share of the priors on what its model makes of the images, ``[B]``."""
        config, prior = self.config, output.logits.new_zeros(len(output.logits))
        if k >= len(self.teacher.models):
            return prior
        if config.similarity > 0:
            prior = prior + config.similarity * patch_similarity_entropy(output.patch_tokens)
        told = self.teacher.class_means if config.feature_match > 0 else ()
        means = told[k] if told else None
        if means is not None:
            prior = prior + config.feature_match * feature_distance(
                output.features, self.targets, means
            )
        if members is None:
            return prior / len(self.teacher.models)
        return prior * members[k] / members.sum(0).clamp_min(1)

    def _attention(self, outputs: Sequence[ViTOutput]) -> Tensor | None:
        maps = [output.cls_attn for output in outputs[: len(self.teacher.models)]]
        return None if maps[0] is None else torch.stack(maps).detach()
