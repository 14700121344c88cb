"""Fill the pool: targets, chosen starts, teachers per image, inversion, batch by batch."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch

from fedmitr_app.config import InversionConfig
from fedmitr_app.inversion.invert import Inverted, invert_batch
from fedmitr_app.inversion.pool import Place, Pool
from fedmitr_app.inversion.starts import starting_images
from fedmitr_app.inversion.targets import draw_members, draw_targets, pick_starts
from fedmitr_app.models import PatchViT
from fedmitr_app.randomness import generator
from fedmitr_app.teacher import Teacher

logger = logging.getLogger(__name__)

RETRIES = 2
LEAST_SHARE_OF_CHANCE = 0.1
LEAST_DEVIATION = 1e-3
"""Of an image's pixels, in units of the data's deviation: flatter ones show nothing."""

Point = Mapping[str, torch.Tensor | float]
OnStep = Callable[[int, Point], None]


@dataclass(frozen=True)
class PoolRequest:
    """Which part of the pool to make."""

    count: int
    """Images."""
    seed: int
    """Run seed."""
    round: int = 0
    """Each round draws anew."""
    origin: str = ""
    """Says which teacher and settings it is for: shards of another origin are made anew."""


class Made(NamedTuple):
    """What a part of the pool was made with."""

    batches: list[Inverted]
    """Each batch's curves, targets and kept indices, without images."""
    seconds: float
    """What they took, whichever run made them."""
    dropped: int
    """Images that came to nothing, however often they were made."""


def steps_per_image(config: InversionConfig) -> int:
    """Return how many steps an image takes: a start drawn and read, or an iteration, is one."""
    return (1 if config.targets == "own" else config.candidates) + config.iterations


def make_pool(
    teacher: Teacher,
    pool: Pool,
    config: InversionConfig,
    request: PoolRequest,
    *,
    device: torch.device,
    student: PatchViT | None = None,
    on_step: OnStep = lambda count, point: None,
    on_reuse: Callable[[int], object] = lambda count: None,
) -> Made:
    """Invert ``request.count`` images in batches and write each to the pool as produced.

    A batch that the pool holds already, from a run that was stopped, is not made again. Every
    batch draws from its own generator, derived from (seed, round, batch), so that it
    doesn't depend on the batches before it.

    Parameters
    ----------
    on_step : callable, optional
        Gets how many images went a step further (see :func:`steps_per_image`), and the
        iteration's point of every curve; an empty mapping while starts are chosen.
    on_reuse : callable, optional
        Gets the number of images of each batch that the pool held already.

    Returns
    -------
    Made
        Of all batches; the images are in the pool, not in memory.
    """
    batches, seconds, dropped = [], 0.0, 0
    for index, first in enumerate(range(0, request.count, config.batch_size)):
        count = min(config.batch_size, request.count - first)
        place = Place(request.round, index)
        provenance = {
            "seed": request.seed,
            "round": request.round,
            "batch": index,
            "images": count,
            "teacher": teacher.combine,
            "origin": request.origin,
            "settings": asdict(config),
        }
        if (found := pool.find(provenance, place)) is None:
            started = time.monotonic()
            rng = generator(request.seed, "inversion", request.round, index)
            heard = partial(on_step, count)
            batch = _one_batch(teacher, config, count, rng, device, student, heard)

            def again(number: int, attempt: int) -> Inverted:
                rng = generator(request.seed, "inversion", request.round, index, "again", attempt)
                return _one_batch(teacher, config, number, rng, device, student, lambda _: None)

            if config.iterations:
                batch = _make_good(batch, again)
            taken = time.monotonic() - started
            pool.add(batch, provenance, place, taken)
            # A clone: an empty slice would keep the whole batch in memory.
            found = batch._replace(images=batch.images[:0].clone()), taken
        else:
            on_reuse(count)
        batches.append(found[0])
        seconds += found[1]
        dropped += count - len(found[0].targets)
    return Made(batches, seconds, dropped)


def _pick_starts(
    teacher: Teacher,
    config: InversionConfig,
    targets: torch.Tensor,
    rng: torch.Generator,
    device: torch.device,
    on_step: Callable[[Point], None],
) -> torch.Tensor:
    """Draw ``candidates`` starts for each target and keep the fittest, ``[B, C, H, W]``."""
    spec, count = teacher.models[0].spec, len(targets)
    drawn, log_probs = [], []
    for _ in range(config.candidates):
        # The teacher reads a batch at a time: only the images themselves pile up, off the device.
        drawn.append(starting_images(config.start, count, spec, rng))
        if config.candidates > 1:
            log_probs.append(teacher(drawn[-1].to(device)).logits.log_softmax(-1).cpu())
        on_step({})
    if config.candidates == 1:
        return drawn[0].to(device)
    return torch.cat(drawn)[pick_starts(torch.cat(log_probs), targets)].to(device)


class Assignment(NamedTuple):
    """What a batch is inverted from, for what, and by whom."""

    starts: torch.Tensor
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
    spec, classes = teacher.models[0].spec, teacher.models[0].num_classes
    if config.targets == "own":
        starts = starting_images(config.start, count, spec, rng).to(device)
        on_step({})
    else:
        targets = draw_targets(config.targets, count, classes, rng)
        starts = _pick_starts(teacher, config, targets, rng, device, on_step)
    if config.targets == "own" or not config.iterations:
        # An image that is not inverted shows no drawn target: all it has is the teacher's label.
        targets = teacher(starts).logits.softmax(-1).cpu()
    members = draw_members(teacher, targets, config.teachers_per_image, rng)
    return Assignment(
        starts, targets.to(device), None if members is None else members.to(device)
    )


def _one_batch(
    teacher: Teacher,
    config: InversionConfig,
    count: int,
    rng: torch.Generator,
    device: torch.device,
    student: PatchViT | None,
    on_step: Callable[[Point], None],
) -> Inverted:
    starts, targets, members = assign(teacher, config, count, rng, device, on_step)
    return invert_batch(
        teacher,
        starts,
        targets,
        config,
        rng,
        members=members,
        student=student,
        on_step=on_step,
    )


def came_to_something(batch: Inverted) -> torch.Tensor:
    """Say which images may be kept, ``[B]`` bool (choice).

    Not those with a pixel that isn't finite, without any variance, or in which the teacher never
    saw the target at a tenth of chance.
    """
    pixels = batch.images.flatten(1)
    sound = pixels.isfinite().all(1) & (pixels.std(1) > LEAST_DEVIATION)
    if batch.confidence is not None:
        sound &= batch.confidence >= LEAST_SHARE_OF_CHANCE / batch.targets.shape[1]
    return sound


def _make_good(batch: Inverted, again: Callable[[int, int], Inverted]) -> Inverted:
    """Replace images that came to nothing by others, ``again(count, attempt)``, or drop them."""
    for attempt in range(RETRIES):
        failed = (~came_to_something(batch)).nonzero().flatten()
        if not len(failed):
            return batch
        other = again(len(failed), attempt)
        logger.info("%d of %d images came to nothing: made again.", len(failed), len(batch.images))
        if other.keep_idx.shape[1] != batch.keep_idx.shape[1]:
            break  # the automatic schedule stopped at another number of patches
        parts = zip(batch[:3], other[:3], strict=True)
        images, targets, keep_idx = (old.index_copy(0, failed, new) for old, new in parts)
        confidence = batch.confidence
        if confidence is not None:
            confidence = confidence.index_copy(0, failed, other.confidence)
        batch = Inverted(images, targets, keep_idx, batch.curves, confidence)
    kept = came_to_something(batch)
    dropped = int((~kept).sum())
    if dropped:
        logger.warning("%d of %d images came to nothing again: dropped.", dropped, len(kept))
    images, targets, keep_idx = (part[kept] for part in batch[:3])
    return batch._replace(images=images, targets=targets, keep_idx=keep_idx)
