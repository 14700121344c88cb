"""FedMITR: invert the teacher sparsely, relabel, distil (arXiv 2605.10748)."""

from collections import Counter
from collections.abc import Sequence

from fedmitr_app.errors import TrainingError
from fedmitr_app.inversion import (
    Inverted,
    Made,
    Pool,
    PoolRequest,
    make_pool,
    steps_per_image,
)
from fedmitr_app.inversion.make_shard import Job, Point
from fedmitr_app.methods.fused import Fused
from fedmitr_app.methods.student import (
    ADVERSARY,
    CHECKPOINT,
    StudentTraining,
    adversary,
    share,
)
from fedmitr_app.methods.task import Task
from fedmitr_app.models import PatchViT
from fedmitr_app.reporting.progress import Progress


def fedmitr(task: Task) -> Fused:
    """Invert the teacher into a pool, distil a student on it.

    With ``inversion.rounds`` above 1 each turn inverts its share of the images, if
    ``inversion.disagreement`` is above 0 against a student that learns from the pool so far, see
    :func:`adversary`. The student that is returned learns from the whole pool. The same settings
    and uploads give the same model on a CPU, also where an earlier run was stopped and left its
    part in the task's folder.

    Raises
    ------
    TrainingError
        If no image comes to anything, or distillation leaves the finite numbers.
    """
    teacher, config = task.teacher, task.settings.inversion
    pool = Pool(task.folder / "pool", task.model.num_patches)
    shards = pool.digests()
    against: StudentTraining | None = None
    steps = task.settings.distillation.steps
    batches, seconds, dropped = [], {"inversion": 0.0}, 0
    for turn in range(config.rounds):
        count = share(config.images, turn, config.rounds)
        request = PoolRequest(count, task.settings.seed, turn, task.origin)
        made = _invert(task, pool, request, against.model if against else None)
        batches += made.batches
        seconds["inversion"] += made.seconds
        dropped += made.dropped
        data = pool.load(task.device, rounds=turn + 1)
        if not len(data):
            raise TrainingError.diverged("inversion", config.learning_rate)
        if config.disagreement > 0 and turn < config.rounds - 1:
            left = task.folder / ADVERSARY
            against = against or adversary(task, data.images, config.rounds, left, shards)
            against.go_on(data, share(steps, turn, config.rounds))
    if against:
        seconds["adversary"] = against.seconds
        del against  # its optimiser holds twice the model
    student = StudentTraining(task, data.images, task.folder / CHECKPOINT, shards)
    student.go_on(data, steps)
    model, held_out = student.finish(data)
    return Fused(
        model=model,
        teacher=teacher,
        images=len(data),
        dropped=dropped,
        inversion=config,
        inversion_curves=_mean_curves(batches),
        distillation_loss=student.losses,
        held_out=held_out,
        seconds={**seconds, "distillation": student.seconds},
    )


def _invert(
    task: Task, pool: Pool, request: PoolRequest, student: PatchViT | None
) -> Made:
    config = task.settings.inversion
    stage = f"{task.label}{'inversion' if config.iterations else 'starts'}"
    chosen = config.candidates > 1 and config.targets != "own"
    choosing = "choosing starts" if chosen else ""
    seen: Counter[int] = Counter()
    # A batch's images go on together: an image counts by its share of steps done.
    with Progress(stage, request.count, parts=steps_per_image(config)) as progress:

        def on_step(job: Job, point: Point | None) -> None:
            if point is None:
                return
            progress.advance(job.count, point.get("loss"), note="" if point else choosing)
            if point:
                where = {"round": request.round, "batch": job.batch, "iteration": seen[job.batch]}
                task.record("inversion", **where, **point)
                seen[job.batch] += 1

        return make_pool(
            task.teacher,
            pool,
            config,
            request,
            device=task.device,
            student=student,
            on_step=on_step,
            on_reuse=progress.skip,
        )


def _mean_curves(batches: Sequence[Inverted]) -> dict[str, list[float]]:
    """Average the batches' curves over images, point by point."""
    sizes = [len(batch.targets) for batch in batches]
    return {
        name: [
            sum(size * value for size, value in zip(sizes, points)) / sum(sizes)
            for points in zip(*(batch.curves[name] for batch in batches))
        ]
        for name in batches[0].curves
    }
