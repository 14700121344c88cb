"""The server's work from uploads to global model: teacher, inversion, distillation.

Knows tensors and typed settings only: any process, any device, no Flower.
"""

import copy
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fedmitr_app.config import DistillationConfig, InversionConfig, TeacherConfig
from fedmitr_app.distillation import Distiller, initial_student
from fedmitr_app.errors import TrainingError
from fedmitr_app.inversion import (
    Inverted,
    Pool,
    PoolRequest,
    make_pool,
    starting_images,
    steps_per_image,
)
from fedmitr_app.models import PatchViT
from fedmitr_app.randomness import generator
from fedmitr_app.reporting.metrics_log import Record
from fedmitr_app.reporting.progress import Progress, headline
from fedmitr_app.teacher import ClientModel, Teacher, probe_priors
from fedmitr_app.uploads import Upload


@dataclass(frozen=True)
class FusionSettings:
    """What decides the global model, given the uploads."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    inversion: InversionConfig = field(default_factory=InversionConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    seed: int = 0

    def without_inversion(self) -> "FusionSettings":
        """The control: procedural images as they come, not inverted.

        Nor chosen: picking the starts that the teacher reads most like a class is already
        part of the inversion, and the control must do without it.
        """
        plain = replace(self.inversion, start="procedural", iterations=0, candidates=1, rounds=1)
        return replace(self, inversion=plain)


@dataclass(frozen=True)
class Fusion:
    """The global model and how it came about."""

    student: PatchViT
    inversion_curves: dict[str, list[float]]
    distillation_loss: list[float]
    images: int
    inversion_seconds: float
    distillation_seconds: float


def load_clients(
    model: PatchViT, uploads: Sequence[Upload], device: torch.device
) -> list[ClientModel]:
    """Load every upload into a model of its own, in the uploads' order."""
    clients = []
    for upload in uploads:
        client = copy.deepcopy(model).to(device)
        client.vit.load_state_dict(upload.load_state())
        clients.append(ClientModel(upload.client, client, upload.num_examples, upload.label_counts))
    return clients


def build_teacher(clients: Sequence[ClientModel], config: TeacherConfig, seed: int) -> Teacher:
    """Freeze the clients into a teacher, probing their priors on procedural images."""

    def probe(models: Sequence[PatchViT]) -> Tensor:
        count, spec = config.probe_images, models[0].spec
        device = next(models[0].parameters()).device
        with Progress("class priors", count * len(models)) as progress:
            images = starting_images("procedural", count, spec, generator(seed, "probing"))
            return probe_priors(models, images.to(device), on_batch=progress.advance)

    teacher = Teacher.build(clients, config, probe)
    headline(f"teacher: {len(clients)} models, combined by {teacher.combine}")
    return teacher


def fuse_by_inversion(
    model: PatchViT,
    clients: Sequence[ClientModel],
    average: Mapping[str, Tensor],
    teacher: Teacher,
    settings: FusionSettings,
    pool_folder: Path,
    *,
    label: str = "",
    record: Record = lambda stage, **values: None,
) -> Fusion:
    """Invert the teacher into a pool, distil a student on it.

    With ``inversion.rounds`` above 1 the two alternate: each round inverts its share of the
    images (against the student so far, if ``inversion.disagreement`` is above 0) and goes on
    distilling on the pool so far.

    Parameters
    ----------
    model : PatchViT
        Holds θ₀; not changed.
    clients : Sequence[ClientModel]
        In the order of their keys.
    average : Mapping[str, Tensor]
        The uploads' weight average, for ``distillation.student = "average"``.
    teacher : Teacher
        On the device that does the work.
    settings : FusionSettings
        The same settings and uploads give the same model on a CPU.
    pool_folder : Path
        Where the pool's shards are written as they are produced.
    label : str
        Put before the stages' names in progress lines.
    record : Record
        Gets each step's numbers while they are made.

    Raises
    ------
    TrainingError
        If inversion or distillation leaves the finite numbers.
    """
    inversion, rounds = settings.inversion, settings.inversion.rounds
    device = teacher.class_weights.device
    pool = Pool(pool_folder, model.num_patches)
    distiller: Distiller | None = None
    numbers = itertools.count()
    batches, losses, seconds = [], [], {"inversion": 0.0, "distillation": 0.0}
    for turn in range(rounds):
        started = time.monotonic()
        request = PoolRequest(_share(inversion.images, turn, rounds), settings.seed, turn)
        student = distiller.student if distiller else None
        batches += _invert(teacher, pool, inversion, request, student, label, record)
        data = pool.load(device)
        if not data.images.isfinite().all():
            raise _diverged("inversion", inversion.learning_rate)
        inverted = time.monotonic()
        if distiller is None:
            kind, sample = settings.distillation.student, data.images[:256]
            first = initial_student(kind, model, clients, average, teacher, sample).to(device)
            rng = generator(settings.seed, "distillation")
            distiller = Distiller(first, teacher, settings.distillation, rng)
        steps = _share(settings.distillation.steps, turn, rounds)
        each = settings.distillation.batch_size
        with Progress(f"{label}distillation", steps, "steps", images_per_unit=each) as progress:

            def on_step(loss: Tensor) -> None:
                progress.advance(loss=loss)
                record("distillation", step=next(numbers), loss=loss)

            losses += distiller.run(data, steps, on_step)
        if not all(math.isfinite(loss) for loss in losses):
            raise _diverged("distillation", settings.distillation.learning_rate)
        seconds["inversion"] += inverted - started
        seconds["distillation"] += time.monotonic() - inverted
    return Fusion(
        student=distiller.student.requires_grad_(True).eval(),
        inversion_curves=_mean_curves([batch.curves for batch in batches]),
        distillation_loss=losses,
        images=len(data),
        inversion_seconds=seconds["inversion"],
        distillation_seconds=seconds["distillation"],
    )


def _invert(
    teacher: Teacher,
    pool: Pool,
    config: InversionConfig,
    request: PoolRequest,
    student: PatchViT | None,
    label: str,
    record: Record,
) -> list[Inverted]:
    stage = f"{label}{'inversion' if config.iterations else 'starts'}"
    chosen = config.candidates > 1 and config.targets != "own"
    choosing = "choosing starts" if chosen else ""
    numbers = itertools.count()
    # A batch's images go on together: an image counts by its share of steps done.
    with Progress(stage, request.count, parts=steps_per_image(config)) as progress:

        def on_step(count: int, point: Mapping[str, Tensor | float]) -> None:
            progress.advance(count, point.get("loss"), note="" if point else choosing)
            if point:
                batch, iteration = divmod(next(numbers), config.iterations)
                where = {"round": request.round, "batch": batch, "iteration": iteration}
                record("inversion", **where, **point)

        device = teacher.class_weights.device
        return make_pool(
            teacher, pool, config, request, device=device, student=student, on_step=on_step
        )


def _diverged(stage: str, learning_rate: float) -> TrainingError:
    return TrainingError(
        f"{stage}.learning-rate = {learning_rate:g} made {stage} leave the finite numbers: "
        "lower it."
    )


def _share(total: int, turn: int, turns: int) -> int:
    """The turn's part of a whole that is split as evenly as integers allow."""
    return total * (turn + 1) // turns - total * turn // turns


def _mean_curves(curves: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """Average the batches' curves, point by point."""
    return {
        name: [sum(points) / len(points) for points in zip(*(curve[name] for curve in curves))]
        for name in curves[0]
    }
