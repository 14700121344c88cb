"""Invert the teacher into images, stopping background patches on the way.

FedMITR's first step (stated: invert semantic foregrounds, gradually stop the background;
ancestor for the staged stopping and the optimiser: Sparse Model Inversion, ICML 2024).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedmitr_app.config import InversionConfig
from fedmitr_app.inversion.accel.microbatches import Microbatches
from fedmitr_app.inversion.objective import Objective
from fedmitr_app.inversion.patches import read_patches
from fedmitr_app.inversion.schedule import Schedule
from fedmitr_app.inversion.state import InversionState
from fedmitr_app.inversion.total_variation import total_variation
from fedmitr_app.inversion.views import View, draw_view, view_patches
from fedmitr_app.teacher import Teacher

CURVES = ("loss", "confidence", "alive")


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
    target's two, weighted by their shares), ``alive`` patches of an image."""
    confidence: Tensor | None = None
    """Each image's highest on the way, ``[B]``; None without an iteration."""


def invert_batch(
    teacher: Teacher,
    initial: Tensor,
    targets: Tensor,
    config: InversionConfig,
    generator: torch.Generator,
    *,
    members: Tensor | None = None,
    on_step: Callable[[Mapping[str, Tensor | float]], None] | None = None,
    on_gradient: Callable[[Tensor], None] | None = None,
) -> Inverted:
    """Invert one batch.

    Parameters
    ----------
    teacher : Teacher
        Its models must be frozen (``Teacher.build`` does that).
    initial : Tensor
        Images to begin with, ``[B, C, H, W]``, model input, on the models' device.
    targets : Tensor
        Class probabilities ``[B, classes]``.
    config : InversionConfig
        Every image takes ``iterations`` steps.
    generator : torch.Generator
        On the CPU; draws views and the ``random`` schedule.
    members : Tensor, optional
        ``[K, B]`` bool, the clients that serve each image.
    on_step : callable, optional
        Gets each iteration's point of every curve, tensors still on the device.
    on_gradient : callable, optional
        Gets each iteration's gradient, see :func:`pixel_gradient`; not to be changed.

    Returns
    -------
    Inverted
        The last iterate. Patches outside ``keep_idx`` hold, bit for bit, the pixels they
        had when they were stopped. Without any iteration (as in the control) no patch was
        made to show its target, so that none may be taught it: none survives.
    """
    objective = Objective(teacher, targets, config, members)
    if objective.may_stack:
        _ = teacher.stack  # a copy of all models: made here, it is not taken for too large a batch
    whole = Microbatches(objective)
    model, schedule = teacher.models[0], Schedule.build(config)
    state = InversionState(initial, config, model.spec, model.patch_size)
    highest = initial.new_zeros(len(initial))
    curves: dict[str, list[Tensor | float]] = {name: [] for name in CURVES}

    for iteration in range(config.iterations):
        views = [
            draw_view(len(initial), model.spec, model.num_patches, config, generator)
            for _ in range(config.views)
        ]
        # A stop at the end would stop nothing.
        share = schedule.stops.get(iteration + 1) if iteration + 1 < config.iterations else None
        attention = share is not None and schedule.needs_density
        found = pixel_gradient(whole, state, views, attention)
        state.move(found.grad)

        confidence = (targets * found.logits.softmax(-1)).sum(-1)
        highest = torch.maximum(highest, confidence)
        point: dict[str, Tensor | float] = {
            "loss": found.loss.mean(),
            "confidence": confidence.mean(),
            "alive": float(state.alive.shape[1]),
        }
        for name, value in point.items():
            curves[name].append(value)
        if on_gradient:
            on_gradient(found.grad)
        if on_step:
            on_step(point)

        if share is not None:
            density = torch.zeros(state.alive.shape, device=initial.device)
            if found.cls_attn is not None:  # as it was asked for
                density = teacher.density(found.cls_attn, targets, members)
            state.stop(schedule.keep(share, density, generator))

    numbers = {name: torch.as_tensor(values).tolist() for name, values in curves.items()}
    if not config.iterations:
        return Inverted(state.images, targets, state.alive[:, :0], numbers)
    return Inverted(state.images, targets, state.alive, numbers, highest)


class PixelGradient(NamedTuple):
    """The objective, mean over a step's views, and its gradient in the image's own frame."""

    loss: Tensor
    """Per image, ``[B]``, total variation included."""
    grad: Tensor
    """With respect to the alive patches' pixels, ``[B, n, C*p*p]``."""
    logits: Tensor
    """The teacher's, ``[B, classes]``."""
    cls_attn: Tensor | None
    """Each client's class attention, ``[K, B, n]``, in the order of the alive patches."""


def pixel_gradient(
    objective: Objective | Microbatches,
    state: InversionState,
    views: Sequence[View],
    attention: bool = False,
) -> PixelGradient:
    """Differentiate the objective by the alive patches' pixels.

    Parameters
    ----------
    objective : Objective or Microbatches
        Of the whole batch.
    views : Sequence[View]
        The step's views of each image: the objective is the mean over them.
    attention : bool
        Whether ``cls_attn`` is wanted: then nothing is zoomed.
    """
    steps, grads = [], []
    for view in views:
        view = view.to(state.images.device)
        seen = view_patches(view, state.alive, state.spec, state.patch_size, zoomed=not attention)
        steps.append(objective.gradient(seen.read(state.images), seen.positions, attention))
        # Back to the image's own frame; frozen neighbours get some too. Only alive patches move:
        # a stopped patch's gradient is dropped here.
        grads.append(read_patches(seen.pull_back(steps[-1].grad, state.images), state.own))
    smooth, slope = total_variation(state.images)
    weight = objective.config.tv
    maps = [step.cls_attn for step in steps if step.cls_attn is not None]
    return PixelGradient(
        _mean([step.loss for step in steps]) + weight * smooth,
        _mean(grads).add_(read_patches(slope, state.own), alpha=weight),
        _mean([step.logits for step in steps]),
        _mean(maps) if attention else None,
    )


def _mean(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)
