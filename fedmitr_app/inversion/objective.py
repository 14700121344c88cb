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
from fedmitr_app.inversion.accel.ensemble_forward import EnsembleForward
from fedmitr_app.inversion.losses import cross_entropy, feature_distance
from fedmitr_app.models import ViTOutput
from fedmitr_app.teacher import Teacher


class Gradient(NamedTuple):
    """The objective at one view of a batch."""

    loss: Tensor
    """Per image, ``[B]``, without total variation."""
    grad: Tensor
    """With respect to the viewed patches, ``[B, n, C*p*p]``."""
    logits: Tensor
    """The teacher's combined logits, ``[B, classes]``."""
    cls_attn: Tensor | None
    """Each client's class attention, ``[K, B, n]``, if asked for."""


@dataclass(frozen=True)
class Objective:
    """CE(teacher, targets), and the optional pull to class means, for one batch of images.

    Parameters
    ----------
    teacher : Teacher
        Frozen.
    targets : Tensor
        Class probabilities ``[B, classes]``.
    config : InversionConfig
        ``loss``, ``gradient``, ``ensemble`` and ``feature_match`` are read.
    members : Tensor, optional
        ``[K, B]`` bool: which clients serve which image.
    """

    teacher: Teacher
    targets: Tensor
    config: InversionConfig
    members: Tensor | None = None

    def gradient(self, patches: Tensor, position_idx: Tensor, attention: bool = False) -> Gradient:
        """Evaluate at patches ``[B, n, C*p*p]`` standing at ``position_idx`` ``[B, n]``."""
        patches = patches.detach().requires_grad_()
        if self.config.loss == "per-teacher":
            return self._one_by_one(patches, position_idx, attention)
        if self.config.gradient == "frugal" or self.teacher.offloaded:
            return self._frugal(patches, position_idx, attention)
        outputs = self._outputs(patches, position_idx, attention)
        logits = torch.stack([output.logits for output in outputs])
        combined = self.teacher.combine_logits(logits, self.members)
        loss = cross_entropy(combined, self.targets)
        for k, output in enumerate(outputs):
            loss = loss + self._prior(k, output)
        (grad,) = torch.autograd.grad(loss.sum(), patches)
        return Gradient(loss.detach(), grad, combined.detach(), _attention(outputs))

    def part(self, rows: slice) -> "Objective":
        """Return the objective of some of the batch's images."""
        members = None if self.members is None else self.members[:, rows]
        return replace(self, targets=self.targets[rows], members=members)

    def _frugal(self, patches: Tensor, position_idx: Tensor, attention: bool) -> Gradient:
        clients, forward = range(len(self.teacher.models)), self._forward
        with torch.no_grad():
            outputs = [forward.run(k, patches, position_idx, attention) for k in clients]
        logits = torch.stack([output.logits for output in outputs]).requires_grad_()
        combined = self.teacher.combine_logits(logits, self.members)
        loss = cross_entropy(combined, self.targets)
        (upstream,) = torch.autograd.grad(loss.sum(), logits)
        loss, grad = loss.detach(), torch.zeros_like(patches)
        for k in clients:
            output = forward.run(k, patches, position_idx, False)
            prior = self._prior(k, output)
            pulled = (output.logits * upstream[k]).sum() + prior.sum()
            grad += torch.autograd.grad(pulled, patches)[0]
            loss = loss + prior.detach()
        return Gradient(loss, grad, combined.detach(), _attention(outputs))

    def _one_by_one(self, patches: Tensor, position_idx: Tensor, attention: bool) -> Gradient:
        """Sum the clients' own losses, weighted: no graph outlives its model."""
        weights = self.teacher.image_weights(self.targets, self.members)
        total, grad, outputs = torch.zeros_like(weights[0]), torch.zeros_like(patches), []
        for k in range(len(self.teacher.models)):
            output = self._forward.run(k, patches, position_idx, attention)
            loss = weights[k] * cross_entropy(output.logits, self.targets)
            loss = loss + self._prior(k, output)
            grad += torch.autograd.grad(loss.sum(), patches)[0]
            total += loss.detach()
            outputs.append(output.each(Tensor.detach))
        logits = torch.stack([output.logits for output in outputs])
        combined = self.teacher.combine_logits(logits, self.members)
        return Gradient(total, grad, combined, _attention(outputs))

    @cached_property
    def _forward(self) -> EnsembleForward:
        return EnsembleForward(self.teacher.models, self.members)

    @property
    def may_stack(self) -> bool:
        """Whether models may run stacked: where that is asked for, or faster at some stage."""
        if self.config.loss == "per-teacher" or self.config.gradient == "frugal":
            return False
        by_choice = self.config.ensemble == "auto" and self.teacher.stackable
        return by_choice or self.config.ensemble == "stacked"

    def _outputs(self, patches: Tensor, position_idx: Tensor, attention: bool) -> list[ViTOutput]:
        """Run every model on the images it serves, one by one or stacked."""
        forward, stack = self._forward, None
        if self.may_stack and (self.config.ensemble == "stacked" or forward.stacking_pays(patches)):
            stack = self.teacher.stack
        if stack is not None:
            return forward.run_stacked(stack, patches, position_idx, attention)
        clients = range(len(self.teacher.models))
        return [forward.run(k, patches, position_idx, attention) for k in clients]

    def _prior(self, k: int, output: ViTOutput) -> Tensor:
        """Return client ``k``'s share of the prior on what its model makes of images, ``[B]``."""
        weight, known = self.config.feature_match, self.teacher.class_means
        means = known[k] if weight > 0 and known else None
        if means is None:
            return output.logits.new_zeros(len(output.logits))
        prior = weight * feature_distance(output.features, self.targets, means)
        if self.members is None:
            return prior / len(self.teacher.models)
        return prior * self.members[k] / self.members.sum(0).clamp_min(1)


def _attention(outputs: Sequence[ViTOutput]) -> Tensor | None:
    maps = [output.cls_attn for output in outputs if output.cls_attn is not None]
    return torch.stack(maps).detach() if maps else None
