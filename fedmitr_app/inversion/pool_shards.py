"""One shard of the pool: targets, initial images, clients per image, inversion."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from fedmitr_app.config import InversionConfig
from fedmitr_app.inversion.initial_images import draw_initial_images
from fedmitr_app.inversion.invert import Inverted, invert_batch
from fedmitr_app.inversion.targets import draw_members, draw_targets, pick_candidates
from fedmitr_app.teacher import Teacher
from fedmitr_app.utils.randomness import generator

logger = logging.getLogger(__name__)

RETRIES = 2
LEAST_SHARE_OF_CHANCE = 0.1
LEAST_DEVIATION = 1e-3
"""Of an image's pixels, in units of the data's deviation: flatter ones show nothing."""

Point = Mapping[str, torch.Tensor | float]


class Job(NamedTuple):
    """A shard that is to be made."""

    batch: int
    """Its place in the pool."""
    count: int  # type: ignore[assignment]  # in the place of a tuple's own, which nobody calls
    """Images."""


class Shard(NamedTuple):
    """A shard that was made."""

    job: Job
    inverted: Inverted
    seconds: float


OnStep = Callable[[Job, Point | None], None]
"""Gets each point of a job's curves; None while unusable images are made again."""


@dataclass(frozen=True)
class ShardMaker:
    """Makes any shard of the pool, in any process: each draws from its own generator.

    That is derived from (seed, batch), so that a shard doesn't depend on the others.
    """

    teacher: Teacher
    config: InversionConfig
    seed: int
    device: torch.device

    def to(self, device: torch.device) -> "ShardMaker":
        """Return the same with its models on a device; these stay where they are."""
        return replace(self, teacher=self.teacher.to(device), device=device)

    def make(self, job: Job, on_step: OnStep) -> Shard:
        """Make one shard.

        Parameters
        ----------
        on_step : callable
            Gets each iteration's point of every curve, and an empty mapping for each candidate
            drawn: all images of the job went a step further.
        """
        started = time.monotonic()
        rng = generator(self.seed, "inversion", 0, job.batch)
        batch = self._invert(job.count, rng, lambda point: on_step(job, point))

        def again(count: int, attempt: int) -> Inverted:
            drawn = generator(self.seed, "inversion", 0, job.batch, "again", attempt)
            return self._invert(count, drawn, lambda point: on_step(job, None))

        if self.config.iterations:
            batch = _replace_unusable(batch, again)
        return Shard(job, batch, time.monotonic() - started)

    def _invert(
        self, count: int, rng: torch.Generator, on_step: Callable[[Point], None]
    ) -> Inverted:
        drawn = assign(self.teacher, self.config, count, rng, self.device, on_step)
        return invert_batch(
            self.teacher,
            drawn.initial,
            drawn.targets,
            self.config,
            rng,
            members=drawn.members,
            on_step=on_step,
        )


class Assignment(NamedTuple):
    """What a batch is inverted from, for what, and by whom."""

    initial: torch.Tensor
    """``[B, C, H, W]``"""
    targets: torch.Tensor
    """Class probabilities ``[B, classes]``."""
    members: torch.Tensor | None
    """``[K, B]`` bool, the clients that serve each image; None for all."""


def assign(
    teacher: Teacher,
    config: InversionConfig,
    count: int,
    rng: torch.Generator,
    device: torch.device,
    on_step: Callable[[Point], None] = lambda point: None,
) -> Assignment:
    """Draw and choose all that a batch of ``count`` images needs before its inversion."""
    targets = draw_targets(config.targets, count, teacher.models[0].num_classes, rng)
    initial = _pick_initial(teacher, config, targets, rng, device, on_step)
    if not config.iterations:
        # An image that is not inverted shows no drawn target: all it has is the teacher's label.
        targets = teacher(initial).logits.softmax(-1).cpu()
    members = draw_members(teacher, targets, config.teachers_per_image, rng)
    return Assignment(initial, targets.to(device), None if members is None else members.to(device))


def _pick_initial(
    teacher: Teacher,
    config: InversionConfig,
    targets: torch.Tensor,
    rng: torch.Generator,
    device: torch.device,
    on_step: Callable[[Point], None],
) -> torch.Tensor:
    """Draw ``candidates`` images for each target and keep the fittest, ``[B, C, H, W]``."""
    spec, count = teacher.models[0].spec, len(targets)
    drawn, log_probs = [], []
    for _ in range(config.candidates):
        # The teacher reads a batch at a time: only the images themselves pile up, off the device.
        drawn.append(draw_initial_images(config.initial_images, count, spec, rng))
        if config.candidates > 1:
            log_probs.append(teacher(drawn[-1].to(device)).logits.log_softmax(-1).cpu())
        on_step({})
    if config.candidates == 1:
        return drawn[0].to(device)
    return torch.cat(drawn)[pick_candidates(torch.cat(log_probs), targets)].to(device)


def usable(batch: Inverted) -> torch.Tensor:
    """Say which images may be taught from, ``[B]`` bool (choice).

    Not those with a pixel that isn't finite, without any variance, or in which the teacher never
    saw the target at a tenth of chance.
    """
    pixels = batch.images.flatten(1)
    sound = pixels.isfinite().all(1) & (pixels.std(1) > LEAST_DEVIATION)
    if batch.confidence is not None:
        sound &= batch.confidence >= LEAST_SHARE_OF_CHANCE / batch.targets.shape[1]
    return sound


def _replace_unusable(batch: Inverted, again: Callable[[int, int], Inverted]) -> Inverted:
    """Replace unusable images by others, ``again(count, attempt)``, or drop them."""
    for attempt in range(RETRIES):
        failed = (~usable(batch)).nonzero().flatten()
        if not len(failed):
            return batch
        other = again(len(failed), attempt)
        logger.info("%d of %d images are unusable: made again.", len(failed), len(batch.images))
        if other.keep_idx.shape[1] != batch.keep_idx.shape[1]:
            break  # the automatic schedule stopped at another number of patches
        parts = zip(batch[:3], other[:3], strict=True)
        images, targets, keep_idx = (old.index_copy(0, failed, new) for old, new in parts)
        confidence = batch.confidence
        if confidence is not None and other.confidence is not None:  # both have it, or neither
            confidence = confidence.index_copy(0, failed, other.confidence)
        batch = Inverted(images, targets, keep_idx, batch.curves, confidence)
    kept = usable(batch)
    dropped = int((~kept).sum())
    if dropped:
        logger.warning("%d of %d images are unusable again: dropped.", dropped, len(kept))
    images, targets, keep_idx = (part[kept] for part in batch[:3])
    return batch._replace(images=images, targets=targets, keep_idx=keep_idx)
