"""Invert the teacher into images, stopping background patches on the way.

FedMITR's first step (stated: invert semantic foregrounds, gradually stop the background;
ancestor for the staged stopping and the optimiser: Sparse Model Inversion, ICML 2024).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedmitr_app.config import InversionConfig
from fedmitr_app.inversion.microbatches import Microbatches
from fedmitr_app.inversion.moving import Moving
from fedmitr_app.inversion.objective import Objective, draw_asked
from fedmitr_app.inversion.reached import Reached
from fedmitr_app.inversion.schedule import Schedule
from fedmitr_app.models import PatchViT
from fedmitr_app.teacher import Teacher

CURVES = ("loss", "confidence", "alive", "moving")


class Inverted(NamedTuple):
    """A batch of synthetic images."""

    images: Tensor
    """Model input, ``[B, C, H, W]``."""
    targets: Tensor
    """The class probabilities they were inverted for, ``[B, classes]``."""
    keep_idx: Tensor
    """Patches that survived, in increasing order, ``[B, n]``; none without an iteration."""
    curves: dict[str, list[float]]
    """Batch means per iteration: ``loss``, ``confidence`` (the target's probability; a mixed
    target's two, weighted by their shares; as the clients see it that were asked), both as they
    were last for an image that is finished; ``alive`` patches of a moving image, and the share
    of images ``moving``."""
    confidence: Tensor | None = None
    """Each image's highest on the way, ``[B]``; None without an iteration."""


def invert_batch(
    teacher: Teacher,
    starts: Tensor,
    targets: Tensor,
    config: InversionConfig,
    generator: torch.Generator,
    *,
    members: Tensor | None = None,
    student: PatchViT | None = None,
    on_step: Callable[[Mapping[str, Tensor | float]], None] | None = None,
    on_gradient: Callable[[Tensor], None] | None = None,
) -> Inverted:
    """Invert one batch.

    Parameters
    ----------
    teacher : Teacher
        Its models must be frozen (``Teacher.build`` does that).
    starts : Tensor
        Starting images ``[B, C, H, W]``, model input, on the models' device.
    targets : Tensor
        Class probabilities ``[B, classes]``.
    config : InversionConfig
        Every image takes ``iterations`` steps; with ``early_stop``, that many at most.
    generator : torch.Generator
        On the CPU; draws views, the ``random`` schedule, and who is asked in a step.
    members : Tensor, optional
        ``[K, B]`` bool, the clients that serve each image.
    student : PatchViT, optional
        To disagree with, see ``inversion.disagreement``.
    on_step : callable, optional
        Gets each iteration's point of every curve, tensors still on the device.
    on_gradient : callable, optional
        Gets each iteration's gradient, see
        :func:`~fedmitr_app.inversion.moving.pixel_gradient`, of the images that still move; not
        to be changed, nor kept: the next one may take its place.

    Returns
    -------
    Inverted
        The last iterate. Patches outside ``keep_idx`` hold, bit for bit, the pixels they
        had when they were stopped. Without any iteration (as in the control) no patch was
        made to show its target, so that none may be taught it: none survives.
    """
    objective = Objective(teacher, targets, config, members, student)
    if objective.may_stack:
        teacher.stack  # a copy of all models: made here, it is not taken for too large a batch
    schedule = Schedule.build(config)
    steps = schedule.until_stop(0, config.iterations)
    moving = Moving(Microbatches(objective), starts, steps)
    reached = Reached(targets, config, max(schedule.stops, default=0))
    curves: dict[str, list[Tensor | float]] = {name: [] for name in CURVES}

    batch = len(starts)
    for iteration in range(config.iterations):
        if iteration in schedule.stops:
            keep = schedule.keep(schedule.stops[iteration], density, generator)
            moving.stop(keep, schedule.until_stop(iteration, config.iterations))
        moving.look(generator)
        stop_follows = iteration + 1 in schedule.stops
        attends = schedule.needs_density and stop_follows
        # Whose attention is asked for says more than one step's gradient: everybody's is.
        asked = None if attends else draw_asked(teacher, config, batch, generator)

        if len(moving):
            found = None  # or the memory of a recording's last step could not be taken back
            found = moving.attended_step() if attends else moving.step(asked)
            if attends:
                density = teacher.density(found.step.cls_attn, targets, members)
            elif stop_follows:
                density = torch.zeros(moving.alive.shape, device=starts.device)
            if on_gradient:
                on_gradient(found.grad)
        point = {
            "loss": moving.loss.mean(),
            "confidence": moving.confidence.mean(),
            "alive": float(moving.alive.shape[1]),
            "moving": len(moving) / batch,
        }
        for name, value in point.items():
            curves[name].append(value)
        if on_step:
            on_step(point)
        if len(moving) and reached.finishes(iteration, moving.rows, found.step.logits):
            moving.rest(reached.others(moving.rows))

    told = {name: torch.as_tensor(values).tolist() for name, values in curves.items()}
    if not config.iterations:
        return Inverted(moving.collected(), targets, moving.alive[:, :0], told)
    return Inverted(moving.collected(), targets, moving.alive, told, moving.highest)
