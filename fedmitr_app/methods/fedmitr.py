"""FedMITR: invert the teacher sparsely, relabel, distil (arXiv 2605.10748)."""

from collections import Counter
from collections.abc import Sequence

from fedmitr_app.errors import TrainingError
from fedmitr_app.inversion import Inverted, Made, Pool, PoolRequest, make_pool, steps_per_image
from fedmitr_app.inversion.pool_shards import Job, Point
from fedmitr_app.methods.registry import register
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.student import CHECKPOINT, StudentTraining
from fedmitr_app.methods.task import Task
from fedmitr_app.utils.progress import Progress


@register("fedmitr", makes_images=True, paper="arXiv 2605.10748")
def fedmitr(task: Task) -> MethodResult:
    """Invert the teacher into a pool, distil a student on it.

    The same settings and uploads give the same model on a CPU, also where an earlier run was
    stopped and left its part in the task's folder.

    Raises
    ------
    TrainingError
        If no image is usable, or distillation leaves the finite numbers.
    """
    teacher, config = task.teacher, task.settings.inversion
    pool = Pool(task.folder / "pool", task.model.num_patches)
    shards = pool.digests()
    made = _invert(task, pool, PoolRequest(config.images, task.settings.seed, task.origin))
    data = pool.load(task.device)
    if not len(data):
        raise TrainingError.diverged("inversion", config.learning_rate)
    student = StudentTraining(task, data.images, task.folder / CHECKPOINT, shards)
    student.go_on(data, task.settings.distillation.steps)
    model, held_out = student.finish(data)
    return MethodResult(
        model=model,
        teacher=teacher,
        images=len(data),
        dropped=made.dropped,
        inversion=config,
        inversion_curves=_mean_curves(made.batches),
        distillation_loss=student.losses,
        held_out=held_out,
        seconds={"inversion": made.seconds, "distillation": student.seconds},
    )


def _invert(task: Task, pool: Pool, request: PoolRequest) -> Made:
    config = task.settings.inversion
    stage = f"{task.label}{'inversion' if config.iterations else 'initial images'}"
    choosing = "choosing initial images" if config.candidates > 1 else ""
    seen: Counter[int] = Counter()
    # A batch's images go on together: an image counts by its share of steps done.
    with Progress(stage, request.count, parts=steps_per_image(config)) as progress:

        def on_step(job: Job, point: Point | None) -> None:
            if point is None:
                return
            progress.advance(job.count, point.get("loss"), note="" if point else choosing)
            if point:
                where = {"batch": job.batch, "iteration": seen[job.batch]}
                task.record("inversion", **where, **point)
                seen[job.batch] += 1

        return make_pool(
            task.teacher,
            pool,
            config,
            request,
            device=task.device,
            on_step=on_step,
            on_reuse=progress.skip,
        )


def _mean_curves(batches: Sequence[Inverted]) -> dict[str, list[float]]:
    """Average the batches' curves over images, point by point."""
    sizes = [len(batch.targets) for batch in batches]
    return {
        name: [
            sum(size * value for size, value in zip(sizes, points, strict=True)) / sum(sizes)
            for points in zip(*(batch.curves[name] for batch in batches), strict=True)
        ]
        for name in batches[0].curves
    }
