"""Fill the pool: whatever shards it lacks are made, here or by several workers."""

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fedmitr_app.config import InversionConfig, decisive
from fedmitr_app.errors import BackendError
from fedmitr_app.inversion.invert import Inverted
from fedmitr_app.inversion.pool import Place, Pool
from fedmitr_app.inversion.pool_shards import Job, OnStep, Shard, ShardMaker
from fedmitr_app.models import PatchViT
from fedmitr_app.teacher import Teacher


@dataclass(frozen=True)
class PoolRequest:
    """Which pool to make."""

    count: int
    """Images."""
    seed: int
    """Run seed."""
    origin: str = ""
    """Says which teacher and settings it is for: shards of another origin are made anew."""


class Made(NamedTuple):
    """What a pool was made with."""

    batches: list[Inverted]
    """Each batch's curves, targets and kept indices, without images."""
    seconds: float
    """What they took, whichever run made them."""
    dropped: int
    """Images that were unusable, however often they were made."""


def steps_per_image(config: InversionConfig) -> int:
    """Return how many steps an image takes: a candidate drawn and read, or an iteration, is one."""
    return config.candidates + config.iterations


def make_pool(
    teacher: Teacher,
    pool: Pool,
    config: InversionConfig,
    request: PoolRequest,
    *,
    device: torch.device,
    on_step: OnStep = lambda job, point: None,
    on_reuse: Callable[[int], object] = lambda count: None,
) -> Made:
    """Invert ``request.count`` images in batches and write each to the pool as produced.

    A batch that the pool holds already, from a run that was stopped, is not made again. With
    ``inversion.backend = "ray"`` several workers make them; the pool is the same.

    Parameters
    ----------
    on_step : callable, optional
        Gets an iteration's point of every curve when a job's images went a step further (see
        :func:`steps_per_image`); an empty mapping while initial images are chosen.
    on_reuse : callable, optional
        Gets the number of images of each batch that the pool held already.

    Returns
    -------
    Made
        Of all batches; the images are in the pool, not in memory.

    Raises
    ------
    BackendError
        If the workers can't be had, or are lost time and again.
    """
    maker = ShardMaker(teacher, config, request.seed, device)
    made: dict[Job, Inverted] = {}
    missing, taken = [], 0.0
    for job in jobs(request.count, config.batch_size):
        found = pool.find(_provenance(maker, request, job), Place(0, job.batch))
        if found is None or not _fits(found[0], teacher.models[0], job):
            missing.append(job)
        else:
            made[job], seconds = found
            taken += seconds
            on_reuse(job.count)
    started = time.monotonic()
    with contextlib.closing(_run(maker, missing, on_step)) as shards:
        for job, batch, seconds in shards:
            place = Place(0, job.batch)
            pool.add(batch, _provenance(maker, request, job), place, seconds)
            # A clone: an empty slice would keep the whole batch in memory.
            made[job] = batch._replace(images=batch.images[:0].clone())
    batches = [made[job] for job in sorted(made)]
    kept = sum(len(batch.targets) for batch in batches)
    return Made(batches, taken + time.monotonic() - started, request.count - kept)


def jobs(count: int, size: int) -> list[Job]:
    """Return a pool's jobs, all of ``size`` images but perhaps the last."""
    firsts = range(0, count, size)
    return [Job(batch, min(size, count - first)) for batch, first in enumerate(firsts)]


def _run(
    maker: ShardMaker, missing: Sequence[Job], on_step: OnStep
) -> Generator[Shard, None, None]:
    """Yield each shard when it is made."""
    if missing and maker.config.backend == "ray":
        try:
            from fedmitr_app.inversion.accel.on_ray import make_on_ray
        except ModuleNotFoundError as error:
            raise BackendError(
                f"inversion.backend = 'ray' needs what is not installed ({error}): install it, "
                "or set inversion.backend = 'local'."
            ) from error
        yield from make_on_ray(maker, missing, on_step)
    else:
        yield from (maker.make(job, on_step) for job in missing)


def _fits(batch: Inverted, model: PatchViT, job: Job) -> bool:
    """Say whether a shard that is there holds images and targets of a model."""
    image = (model.spec.channels, model.spec.size, model.spec.size)
    shape = (tuple(batch.images.shape[1:]), batch.targets.shape[1])
    return shape == (image, model.num_classes) and len(batch.targets) <= job.count


def _provenance(maker: ShardMaker, request: PoolRequest, job: Job) -> dict[str, object]:
    return {
        "seed": request.seed,
        "batch": job.batch,
        "images": job.count,
        "teacher": maker.teacher.combine,
        "origin": request.origin,
        "settings": decisive(maker.config),
    }
