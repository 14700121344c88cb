"""Invert the teacher into images, stopping background patches on the way.

FedMITR's first step (stated: invert semantic foregrounds, gradually stop the background;
ancestor for the staged stopping and the optimiser: Sparse Model Inversion, ICML 2024).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedmitr_app.config import InversionConfig
from fedmitr_app.inversion.geometry import (
    Views,
    draw_views,
    own_pixels,
    read_patches,
    viewed_pixels,
    write_patches,
)
from fedmitr_app.inversion.losses import total_variation
from fedmitr_app.inversion.microbatches import Microbatches
from fedmitr_app.inversion.objective import Gradient, Objective, draw_asked
from fedmitr_app.inversion.patch_adam import PatchAdam
from fedmitr_app.inversion.reached import Reached
from fedmitr_app.inversion.recorded import Recorder, recordable
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
        Gets each iteration's gradient, see :func:`pixel_gradient`, of the images that still
        move; not to be changed, nor kept: the next one may take its place.

    Returns
    -------
    Inverted
        The last iterate. Patches outside ``keep_idx`` hold, bit for bit, the pixels they
        had when they were stopped. Without any iteration (as in the control) no patch was
        made to show its target, so that none may be taught it: none survives.
    """
    whole = Objective(teacher, targets, config, members, student)
    if whole.may_stack:
        teacher.stack  # a copy of all models: made here, it is not taken for too large a batch
    whole = objective = Microbatches(whole)
    schedule = Schedule.build(config)
    model = teacher.models[0]
    size, patch = model.spec.size, model.patch_size
    batch, device = len(starts), starts.device
    images, moving = starts.clone(), starts.clone()
    here = torch.arange(batch)  # the images that still move; on the CPU, for what is drawn there
    rows = here.to(device)
    alive = torch.arange(model.num_patches, device=device).expand(batch, -1)
    own = own_pixels(alive, size, patch)
    optimiser = PatchAdam(read_patches(images, own), config)
    reached = Reached(targets, config, max(schedule.stops, default=0))
    low, high = (_per_patch(bound, patch) for bound in model.spec.pixel_range(images))
    density = torch.zeros(alive.shape, device=device)
    loss, confidence, highest = (starts.new_zeros(batch) for _ in range(3))
    curves: dict[str, list[Tensor | float]] = {name: [] for name in CURVES}
    views = Views.plain(batch, device)

    def step(attention: bool = False, asked: Tensor | None = None) -> "PixelGradient":
        """Move what still moves, in place, and keep what the teacher said of it."""
        found = pixel_gradient(
            objective, moving, alive[rows], own, views.of(rows), attention, asked
        )
        pixels = optimiser.step(found.grad)
        write_patches(moving, pixels.clamp_(low, high), own)
        loss[rows] = found.step.loss + config.tv * found.smooth
        confidence[rows] = (targets[rows] * found.step.logits.softmax(-1)).sum(-1)
        torch.maximum(highest, confidence, out=highest)
        return found

    # What ``step`` reads is bound anew at a stop and where images finish: then it starts anew.
    plain_step = Recorder(step, device, recordable(config, teacher, device))
    plain_step.restart(schedule.until_stop(0, config.iterations))

    for iteration in range(config.iterations):
        if iteration in schedule.stops:
            keep = schedule.keep(schedule.stops[iteration], density, generator)
            alive = alive.gather(1, keep)
            own = own_pixels(alive, size, patch)
            optimiser.keep(keep)
            plain_step.restart(schedule.until_stop(iteration, config.iterations))
        views.set(draw_views(batch, size, config.roll, config.flip, generator))
        ask_density = schedule.needs_density and iteration + 1 in schedule.stops
        # Whose attention is asked for says more than one step's gradient: everybody's is.
        asked = None if ask_density else draw_asked(teacher, config, batch, generator)

        if len(rows):
            if ask_density:
                found = None
                plain_step.restart(0)  # a recording's memory is free for this larger step
                found = step(attention=True)
                density = teacher.density(found.step.cls_attn, targets, members)
            else:
                found = plain_step() if asked is None else step(asked=asked[:, here])
                if iteration + 1 in schedule.stops:
                    density = torch.zeros(alive.shape, device=device)
            if on_gradient:
                on_gradient(found.grad)
        point = {
            "loss": loss.mean(),
            "confidence": confidence.mean(),
            "alive": float(alive.shape[1]),
            "moving": len(rows) / batch,
        }
        for name, value in point.items():
            curves[name].append(value)
        if on_step:
            on_step(point)
        if len(rows) and reached.finishes(iteration, rows, found.step.logits):
            stay = reached.others(rows)
            images[rows] = moving
            here, rows, own = here[stay.cpu()], rows[stay], own[stay]
            moving, objective = images[rows], whole.of(rows)
            optimiser.keep_images(stay)

    images[rows] = moving
    told = {name: torch.as_tensor(values).tolist() for name, values in curves.items()}
    if not config.iterations:
        return Inverted(images, targets, alive[:, :0], told)
    return Inverted(images, targets, alive, told, highest)


class PixelGradient(NamedTuple):
    """One view's objective, brought back to the image's own frame."""

    step: Gradient
    grad: Tensor
    """With respect to the alive patches' pixels, total variation included, ``[B, n, C*p*p]``."""
    smooth: Tensor
    """Total variation of each image, unweighted, ``[B]``."""


def pixel_gradient(
    objective: Objective | Microbatches,
    images: Tensor,
    alive: Tensor,
    own: Tensor,
    views: Views,
    attention: bool = False,
    asked: Tensor | None = None,
) -> PixelGradient:
    """Differentiate the objective at one view of ``images`` ``[B, C, H, W]``.

    Parameters
    ----------
    alive, own : Tensor
        The patches that still move, ``[B, n]``, and their :func:`own_pixels`.
    attention : bool
        Whether ``step.cls_attn`` is wanted.
    asked : Tensor, optional
        See :meth:`Objective.gradient`.
    """
    model = objective.teacher.models[0]
    viewed, positions = viewed_pixels(alive, views, model.spec.size, model.patch_size)
    step = objective.gradient(read_patches(images, viewed), positions, attention, asked)
    # Back to the image's own frame; frozen neighbours get some too.
    grad = torch.zeros_like(images)
    write_patches(grad, step.grad, viewed)
    smooth, slope = total_variation(images)
    grad.add_(slope, alpha=objective.config.tv)
    # Only alive patches move: a stopped patch's gradient is dropped here.
    return PixelGradient(step, read_patches(grad, own), smooth)


def _per_patch(bound: Tensor, patch_size: int) -> Tensor:
    """Spread a per-channel bound ``[1, C, 1, 1]`` over a patch's pixels: ``[1, 1, C*p*p]``."""
    return bound.reshape(-1, 1).expand(-1, patch_size**2).reshape(1, 1, -1)
