"""Measure all that the theory speaks of, from one run's uploads, pool and student."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedmitr_app.diagnostics.curvature import (
    input_gradients,
    largest_of_parts,
    student_curvature,
)
from fedmitr_app.diagnostics.gap import gap
from fedmitr_app.diagnostics.gradients import compare_gradients
from fedmitr_app.diagnostics.measurements import Diagnosis, StudentFigures
from fedmitr_app.diagnostics.variance import variance_by_labels
from fedmitr_app.inversion import Pool, PoolData
from fedmitr_app.methods.dense_inversion import dense_inversion
from fedmitr_app.methods.task import Task
from fedmitr_app.models import PatchViT
from fedmitr_app.utils.progress import headline
from fedmitr_app.utils.randomness import generator


@dataclass(frozen=True)
class Distilled:
    """A student and the synthetic images it learnt from, on one device."""

    model: PatchViT
    pool: PoolData


@dataclass(frozen=True)
class Sizes:
    """How much to measure: the figures' precision against time.

    Attributes
    ----------
    inverted : int
        Images of the inversions whose gradients are compared.
    batches : int
        Batches over which the student's gradient varies.
    curved : int
        Images of the loss whose curvature is sought.
    batch_size : int
        Images per pass where all are looked at.
    """

    inverted: int = 64
    batches: int = 32
    curved: int = 64
    batch_size: int = 256


def diagnose(
    task: Task,
    student: Distilled,
    dense: Distilled | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    sizes: Sizes = Sizes(),
) -> Diagnosis:
    """Measure the claims on one run.

    Parameters
    ----------
    task : Task
        The run's uploads and settings; its teacher labels.
    student : Distilled
        The run's own.
    dense : Distilled, optional
        What to compare it with, see :func:`distil_dense`; without it the claims that compare
        students stay open.
    test : tuple[Tensor, Tensor], optional
        Real images, uint8 ``[m, C, H, W]``, and labels, int64 ``[m]``. Only measured.
    sizes : Sizes
        How much to measure.

    Returns
    -------
    Diagnosis
        The same for the same seed on a CPU.
    """
    settings = task.settings
    teacher, seed = task.teacher, settings.seed
    headline("diagnosis: the inversion's gradient, dense and sparse")
    gradients = compare_gradients(
        teacher, settings.inversion, images=sizes.inverted, seed=seed, device=task.device
    )
    headline("diagnosis: the student's gradient, by what tokens are taught")
    variance = variance_by_labels(
        student.model,
        teacher,
        student.pool,
        settings.distillation,
        batches=sizes.batches,
        seed=seed,
    )
    students = {"run": student} | ({} if dense is None else {"dense": dense})
    headline("diagnosis: slope, curvature and gap of " + " and ".join(students))
    measured = {name: _student(task, one, test, sizes) for name, one in students.items()}
    return Diagnosis(gradients, variance, measured)


def distil_dense(task: Task) -> Distilled:
    """Distil a student from the same uploads by dense inversion, without token labels."""
    with tempfile.TemporaryDirectory(prefix="fedmitr-dense-") as name:
        folder = Path(name)
        fused = dense_inversion(task.alter(lambda ours: ours, folder=folder, label="dense: "))
        pool = Pool(folder / "pool", task.model.num_patches).load(task.device)
    assert fused.model is not None  # of a method that distils
    return Distilled(fused.model, pool)


def _student(
    task: Task, one: Distilled, test: tuple[Tensor, Tensor] | None, sizes: Sizes
) -> StudentFigures:
    """Measure a student on its own pool, with the teacher's answers as labels."""
    images, most = one.pool.images, sizes.batch_size
    with torch.no_grad():
        answers = [task.teacher(part).logits.softmax(-1) for part in images.split(most)]
    targets = torch.cat(answers)
    seed = task.settings.seed
    rng = generator(seed, "diagnosis", "curvature")
    some = torch.randperm(len(images), generator=rng)[: sizes.curved].to(images.device)
    found = None
    if test is not None:
        spec = task.model.spec
        found = gap(one.model, task.teacher, images, *test, spec, seed, batch_size=most)
    norms = input_gradients(one.model, images, targets, batch_size=most)
    return StudentFigures(
        lipschitz=float(norms.max()),
        largest=largest_of_parts(norms, generator(seed, "diagnosis", "parts")),
        curvature=student_curvature(one.model, images[some], targets[some], rng),
        gap=found,
    )
