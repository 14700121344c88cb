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
from fedmitr_app.inversion.objective import Gradient, Objective
from fedmitr_app.inversion.schedule import Schedule
from fedmitr_app.models import PatchViT
from fedmitr_app.teacher import Teacher


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
    target's two, weighted by their shares), ``alive``."""
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
        Every image takes ``iterations`` steps.
    generator : torch.Generator
        On the CPU; draws views and the ``random`` schedule.
    members : Tensor, optional
        ``[K, B]`` bool, the clients that serve each image.
    student : PatchViT, optional
        To disagree with, see ``inversion.disagreement``.
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
    objective = Microbatches(Objective(teacher, targets, config, members, student))
    schedule = Schedule.build(config)
    model = teacher.models[0]
    size, patch = model.spec.size, model.patch_size
    images = starts.clone()
    batch = len(images)
    alive = torch.arange(model.num_patches, device=images.device).expand(batch, -1)
    own = own_pixels(alive, size, patch)
    optimiser = PatchAdam(read_patches(images, own), config)
    low, high = (_per_patch(bound, patch) for bound in model.spec.pixel_range(images))
    density = torch.zeros(alive.shape, device=images.device)
    highest = torch.zeros(batch, device=images.device)
    losses, confidences, counts = [], [], []

    for iteration in range(config.iterations):
        if iteration in schedule.stops:
            keep = schedule.keep(schedule.stops[iteration], density, generator)
            alive = alive.gather(1, keep)
            own = own_pixels(alive, size, patch)
            optimiser.keep(keep)
        views = draw_views(batch, size, config.roll, config.flip, generator).to(images.device)
        ask_density = schedule.needs_density and iteration + 1 in schedule.stops

        step, grad, smooth = pixel_gradient(objective, images, alive, own, views, ask_density)
        if on_gradient:
            on_gradient(grad)
        pixels = optimiser.step(grad)
        write_patches(images, pixels.clamp_(low, high), own)

        if ask_density:
            density = teacher.density(step.cls_attn, targets, members)
        elif iteration + 1 in schedule.stops:
            density = torch.zeros(alive.shape, device=images.device)
        losses.append(step.loss.mean() + config.tv * smooth.mean())
        confidence = (targets * step.logits.softmax(-1)).sum(-1)
        confidences.append(confidence.mean())
        highest = torch.maximum(highest, confidence)
        counts.append(alive.shape[1])
        if on_step:
            on_step({"loss": losses[-1], "confidence": confidences[-1], "alive": counts[-1]})

    curves = {
        "loss": torch.stack(losses).tolist() if losses else [],
        "confidence": torch.stack(confidences).tolist() if confidences else [],
        "alive": [float(count) for count in counts],
    }
    if not config.iterations:
        return Inverted(images, targets, alive[:, :0], curves)
    return Inverted(images, targets, alive, curves, highest)


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
) -> PixelGradient:
    """Differentiate the objective at one view of ``images`` ``[B, C, H, W]``.

    Parameters
    ----------
    alive, own : Tensor
        The patches that still move, ``[B, n]``, and their :func:`own_pixels`.
    attention : bool
        Whether ``step.cls_attn`` is wanted.
    """
    model = objective.teacher.models[0]
    viewed, positions = viewed_pixels(alive, views, model.spec.size, model.patch_size)
    step = objective.gradient(read_patches(images, viewed), positions, attention)
    # Back to the image's own frame; frozen neighbours get some too.
    grad = torch.zeros_like(images)
    write_patches(grad, step.grad, viewed)
    smooth, slope = total_variation(images)
    grad.add_(slope, alpha=objective.config.tv)
    # Only alive patches move: a stopped patch's gradient is dropped here.
    return PixelGradient(step, read_patches(grad, own), smooth)


class PatchAdam:
    """Adam (Kingma & Ba, 2015) on the alive patches only, ``[B, n, C*p*p]``.

    Its state shrinks with them, so that a stopped patch has neither gradient nor momentum.
    torch's own Adam can't drop rows of a parameter without losing its state. With
    ``inversion.step_scale = "image"`` the second moment is averaged over an image's alive
    pixels (choice): a pixel with a small gradient then moves little, where plain Adam moves
    every pixel about as far.
    """

    def __init__(self, pixels: Tensor, config: InversionConfig) -> None:
        self.pixels = pixels
        self.mean = torch.zeros_like(pixels)
        self.square = torch.zeros_like(pixels)
        self.rate, self.betas, self.count = config.learning_rate, (config.beta1, config.beta2), 0
        self.per_image = config.step_scale == "image"

    def keep(self, keep: Tensor) -> None:
        """Drop all patches but the positions ``keep`` ``[B, m]``."""
        index = keep.unsqueeze(-1).expand(-1, -1, self.pixels.shape[-1])
        self.pixels, self.mean, self.square = (
            state.gather(1, index) for state in (self.pixels, self.mean, self.square)
        )

    def step(self, grad: Tensor) -> Tensor:
        """Move the pixels by one step and return them; the caller may clip them in place."""
        beta1, beta2 = self.betas
        self.count += 1
        self.mean.lerp_(grad, 1 - beta1)
        self.square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        square = self.square.mean((1, 2), keepdim=True) if self.per_image else self.square
        scale = (square / (1 - beta2**self.count)).sqrt_().add_(1e-8)
        self.pixels.addcdiv_(self.mean, scale, value=-self.rate / (1 - beta1**self.count))
        return self.pixels


def _per_patch(bound: Tensor, patch_size: int) -> Tensor:
    """Spread a per-channel bound ``[1, C, 1, 1]`` over a patch's pixels: ``[1, 1, C*p*p]``."""
    return bound.reshape(-1, 1).expand(-1, patch_size**2).reshape(1, 1, -1)
