"""Distillation on real training images: out of reach for a server without data."""

import time

import torch

from fedmitr_app.errors import MethodUnavailable
from fedmitr_app.inversion import PoolData
from fedmitr_app.methods.registry import REAL_IMAGES, register
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.student import StudentTraining
from fedmitr_app.methods.task import Task
from fedmitr_app.utils.randomness import generator


@register("real-images", needs=[REAL_IMAGES])
def real_images(task: Task) -> MethodResult:
    """Distil on ``inversion.images`` training images, with the ensemble's answers as labels.

    Raises
    ------
    MethodUnavailable
        If there are no real images, as on any true server.
    """
    if task.real_images is None:
        raise MethodUnavailable("it needs the training images, which no server has")
    started = time.monotonic()
    count = min(task.settings.inversion.images, len(task.real_images))
    rng = generator(task.settings.seed, "real-images")
    chosen = torch.randperm(len(task.real_images), generator=rng)[:count]
    images = task.real_images[chosen].to(task.device)
    with torch.no_grad():
        parts = [task.teacher(part).logits.softmax(-1) for part in images.split(256)]
    # No patch was inverted towards a label: every token learns what the ensemble says of it.
    mask = torch.zeros(count, task.model.num_patches, dtype=torch.bool, device=task.device)
    pool = PoolData(images, torch.cat(parts), mask)
    student = StudentTraining(task, pool.images)
    student.go_on(pool, task.settings.distillation.steps)
    model, held_out = student.finish(pool)
    return MethodResult(
        model=model,
        teacher=task.teacher,
        distillation_loss=student.losses,
        held_out=held_out,
        seconds={"distillation": time.monotonic() - started},
    )
