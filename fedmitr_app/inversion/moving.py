"""A batch of images on their way: what a step of the inversion reads, and where it writes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedmitr_app.inversion.geometry import own_pixels, read_patches, write_patches
from fedmitr_app.inversion.looks import Look, draw_look, shown
from fedmitr_app.inversion.microbatches import Microbatches
from fedmitr_app.inversion.objective import Gradient, Objective
from fedmitr_app.inversion.patch_adam import PatchAdam
from fedmitr_app.inversion.recorded import Recorder, recordable
from fedmitr_app.inversion.variation import Variation, variation_of


class PixelGradient(NamedTuple):
    """The objective, mean over a step's views, brought back to the image's own frame."""

    step: Gradient
    """Its ``grad`` is that of the last view."""
    grad: Tensor
    """With respect to the alive patches' pixels, total variation included, ``[B, n, C*p*p]``."""
    smooth: Tensor
    """Total variation of each image, unweighted, ``[B]``."""


def pixel_gradient(
    objective: Objective | Microbatches,
    images: Tensor,
    alive: Tensor,
    own: Tensor,
    looks: Sequence[Look],
    variation: Variation,
    attention: bool = False,
    asked: Tensor | None = None,
) -> PixelGradient:
    """Differentiate the objective at some looks at ``images`` ``[B, C, H, W]``.

    Parameters
    ----------
    alive, own : Tensor
        The patches that still move, ``[B, n]``, and their :func:`own_pixels`.
    looks : Sequence[Look]
        The step's views of each image: the objective is the mean over them.
    variation : Variation
        Of these patches.
    attention : bool
        Whether ``step.cls_attn`` is wanted, in the order of ``alive``: then nothing is zoomed.
    asked : Tensor, optional
        See :meth:`Objective.gradient`.
    """
    model = objective.teacher.models[0]
    steps, grads = [], []
    for look in looks:
        seen = shown(look, alive, model.spec, model.patch_size, zoomed=not attention)
        steps.append(objective.gradient(seen.read(images), seen.positions, attention, asked))
        # Back to the image's own frame; frozen neighbours get some too. Only alive patches move:
        # a stopped patch's gradient is dropped here.
        grads.append(read_patches(seen.pull_back(steps[-1].grad, images), own))
    smooth, slope = variation(images)
    moved = _mean(grads).add_(slope, alpha=objective.config.tv)
    return PixelGradient(_mean_step(steps), moved, smooth)


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)


def _mean_step(steps: Sequence[Gradient]) -> Gradient:
    if len(steps) == 1:
        return steps[0]
    loss, logits = (_mean([getattr(step, name) for step in steps]) for name in ("loss", "logits"))
    maps = [step.cls_attn for step in steps]
    return Gradient(loss, steps[-1].grad, logits, None if maps[0] is None else _mean(maps))


class Moving:
    """The images of a batch that still move, and those that have come to rest.

    A step overwrites what it reads, in place, so that it can be recorded and replayed. What binds
    that anew, :meth:`stop` and :meth:`rest`, ends a recording.

    Parameters
    ----------
    objective : Microbatches
        Of the whole batch.
    starts : Tensor
        ``[B, C, H, W]``, model input.
    steps : int
        How many take every patch, before the first stop.

    Attributes
    ----------
    rows : Tensor
        Places in the batch of the images that still move, ``[b]``; ``rows_on_cpu`` the same there.
    alive : Tensor
        Patches that have not been stopped, in increasing order, ``[B, n]``.
    looks : tuple[Look, ...]
        What the next step looks at, ``inversion.views`` times at all B images; overwritten in
        place, see :meth:`look`.
    loss, confidence, highest : Tensor
        As each image's last step saw it, ``[B]``: total variation included; the target's
        probability, and its highest so far.
    """

    def __init__(self, objective: Microbatches, starts: Tensor, steps: int) -> None:
        teacher, config = objective.teacher, objective.config
        model = teacher.models[0]
        batch, device = len(starts), starts.device
        self._whole = self._objective = objective
        self._targets, self._tv = objective.targets, config.tv
        self._size, self._patch = model.spec.size, model.patch_size
        self._resting, self._images = starts.clone(), starts.clone()
        self.rows_on_cpu = torch.arange(batch)
        self.rows = self.rows_on_cpu.to(device)
        self.alive = torch.arange(model.num_patches, device=device).expand(batch, -1)
        self._own = own_pixels(self.alive, self._size, self._patch)
        self._variation = variation_of(starts, self.alive, self._own, self._patch)
        self._optimiser = PatchAdam(read_patches(starts, self._own), config, model.spec)
        bounds = model.spec.pixel_range(starts)
        self._bounds = tuple(_per_patch(bound, self._patch) for bound in bounds)
        self._spec, self._config = model.spec, config
        self.looks = tuple(look.to(device) for look in self._draw(torch.Generator()))
        self.loss, self.confidence, self.highest = (starts.new_zeros(batch) for _ in range(3))
        self._recorder = Recorder(device, recordable(config, teacher, device))
        self._recorder.restart(steps)

    def __len__(self) -> int:
        return len(self.rows)

    def look(self, generator: torch.Generator) -> None:
        """Draw on the CPU what the next step looks at."""
        for mine, new in zip(self.looks, self._draw(generator), strict=True):
            mine.set(new)

    def _draw(self, generator: torch.Generator) -> list[Look]:
        batch, patches = self.alive.shape[0], (self._size // self._patch) ** 2
        return [
            draw_look(batch, self._spec, patches, self._config, generator)
            for _ in range(self._config.views)
        ]

    def step(self, asked: Tensor | None = None) -> PixelGradient:
        """Move what still moves; ``asked``, ``[K, B]``, as in :meth:`Objective.gradient`.

        What is returned may be overwritten by the next step.
        """
        if asked is None:
            return self._recorder(self._step)
        return self._step(asked=asked[:, self.rows_on_cpu])

    def attended_step(self) -> PixelGradient:
        """Do a step that gives the class attention too, the last before a stop."""
        self._recorder.restart(0)  # a recording's memory is free for this larger step
        return self._step(attention=True)

    def stop(self, keep: Tensor, steps: int) -> None:
        """Go on with the positions ``keep`` ``[B, m]`` of the alive patches, ``steps`` times."""
        self._recorder.restart(steps)
        self.alive = self.alive.gather(1, keep)
        alive = self.alive[self.rows]
        self._own = own_pixels(alive, self._size, self._patch)
        self._variation = variation_of(self._images, alive, self._own, self._patch)
        self._optimiser.keep(keep[self.rows])

    def rest(self, stay: Tensor) -> None:
        """Go on with the images at ``stay`` ``[b']`` in ``rows``; the others are finished."""
        self._recorder.restart(0)
        self._resting[self.rows] = self._images
        self.rows, self._own = self.rows[stay], self._own[stay]
        self.rows_on_cpu = self.rows_on_cpu[stay.cpu()]
        self._images = self._resting[self.rows]
        self._objective = self._whole.of(self.rows)
        alive = self.alive[self.rows]
        self._variation = variation_of(self._images, alive, self._own, self._patch)
        self._optimiser.keep_images(stay)

    def collected(self) -> Tensor:
        """Bring all images together, as they are now, ``[B, C, H, W]``."""
        self._resting[self.rows] = self._images
        return self._resting

    def _step(self, attention: bool = False, asked: Tensor | None = None) -> PixelGradient:
        rows = self.rows
        found = pixel_gradient(
            self._objective,
            self._images,
            self.alive[rows],
            self._own,
            [look.of(rows) for look in self.looks],
            self._variation,
            attention,
            asked,
        )
        pixels = self._optimiser.step(found.grad)
        write_patches(self._images, pixels.clamp_(*self._bounds), self._own)
        self.loss[rows] = found.step.loss + self._tv * found.smooth
        answers = found.step.logits.softmax(-1)
        self.confidence[rows] = (self._targets[rows] * answers).sum(-1)
        torch.maximum(self.highest, self.confidence, out=self.highest)
        return found


def _per_patch(bound: Tensor, patch_size: int) -> Tensor:
    """Spread a per-channel bound ``[1, C, 1, 1]`` over a patch's pixels: ``[1, 1, C*p*p]``."""
    return bound.reshape(-1, 1).expand(-1, patch_size**2).reshape(1, 1, -1)
