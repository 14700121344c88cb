"""Images from a generator that is trained against the teacher: what DENSE and Co-Boosting share.

DENSE (NeurIPS 2022) and, after it, Co-Boosting (ICLR 2024) alternate, turn by turn: a fresh
convolutional generator learns one batch of images for one fixed draw of noise and labels; the
batch joins the pool; the student goes on distilling on the pool so far. The two papers differ
in the generator's loss and in what happens to pool and ensemble before the student sees them.

Choice: the student that generators work against is not the one that is returned. The papers'
alternates for hundreds of turns at one rate; a handful of turns under one schedule give the full
pool an eighth of the steps. So the returned one is new, distilled on the finished pool.

From their public code: two nearest-neighbour doublings, BatchNorm, leaky ReLU, weights from
N(0, 0.02²), Adam with betas (0.5, 0.999), and of all steps of a turn the batch with the lowest
loss is kept. Choice: half as many steps at three times the rate (``generator``'s defaults:
better here for less time, on validation images); the noise stays as drawn (there Adam moves it by
a few hundredths); labels are balanced; the losses are taken on views with the inversion's rolls
and flips (DENSE crops and mirrors); images larger than 32 pixels get more doublings from a smaller
start, else the first layer would hold most of a hundred million weights.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmitr_app.config import GeneratorConfig
from fedmitr_app.errors import TrainingError
from fedmitr_app.inversion import Inverted, Place, Pool, PoolData
from fedmitr_app.inversion.targets import draw_targets
from fedmitr_app.inversion.views import apply_roll_flip, draw_roll_flip
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.settings import MethodSettings
from fedmitr_app.methods.student import StudentTraining, adversary, share
from fedmitr_app.methods.task import Task
from fedmitr_app.models import InputSpec, PatchViT
from fedmitr_app.teacher import Teacher
from fedmitr_app.utils.progress import Progress
from fedmitr_app.utils.randomness import generator, seeded_init

Objective = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""The generator's loss per image ``[B]``, of the ensemble's logits ``[B, C]``, the targets
``[B, C]`` and the student's logits ``[B, C]``, or None before there is a student."""


class Boost(NamedTuple):
    """What a method does to ensemble and pool before a student sees them."""

    learn: Callable[[PoolData, int], Teacher]
    """From the pool so far and the turn to who teaches until the next turn."""
    move: Callable[[PoolData, Teacher, int], PoolData]
    """From a pool, its teacher and the number of this move to what the student sees of it."""


LARGEST_START = 8


class Generator(nn.Module):
    """From noise ``[B, latent]`` to model input ``[B, C, size, size]`` in its valid range."""

    def __init__(self, spec: InputSpec, config: GeneratorConfig) -> None:
        super().__init__()
        self.spec = spec
        self.sides = doublings(spec.size)
        # The papers' two stages first; a further one, at a larger side, is half as wide.
        widths = [2 * config.width, 2 * config.width, config.width]
        for _ in self.sides[3:]:
            widths.append(max(widths[-1] // 2, min(16, config.width)))
        self.start = nn.Linear(config.latent, widths[0] * self.sides[0] ** 2)
        self.start_norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            )
            for before, after in itertools.pairwise(widths)
        )
        self.pixels = nn.Conv2d(widths[-1], spec.channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, noise: Tensor) -> Tensor:
        """Make one image of each row of noise."""
        side = self.sides[0]
        features = self.start_norm(self.start(noise).unflatten(1, (-1, side, side)))
        for side, stage in zip(self.sides[1:], self.stages, strict=True):
            features = stage(F.interpolate(features, size=(side, side)))
        return self.spec.normalise(self.pixels(features).sigmoid())


def doublings(size: int) -> list[int]:
    """Return the sides of the generator's maps: at least two doublings, from at most 8 pixels.

    >>> doublings(28), doublings(224)
    ([7, 14, 28], [7, 14, 28, 56, 112, 224])
    """
    sides = [size]
    while len(sides) < 3 or sides[0] > LARGEST_START:
        sides.insert(0, math.ceil(sides[0] / 2))
    return sides


def ensemble_logits(teacher: Teacher, images: Tensor) -> Tensor:
    """Return combined logits ``[B, classes]`` with a graph to the images."""
    return teacher.combine_logits(torch.stack([model(images).logits for model in teacher.models]))


def class_token_only(ours: MethodSettings) -> MethodSettings:
    """Distil the class token's answer only: no patch of a generated image was ever stopped."""
    return replace(ours, distillation=replace(ours.distillation, relabel="none"))


def number_of_turns(settings: MethodSettings) -> int:
    """Return ``generator.turns``, or more where a turn's images would not fit one batch.

    Never more than one turn an image.
    """
    images = settings.inversion.images
    least = math.ceil(images / settings.inversion.batch_size)
    return min(max(settings.generator.turns, least), images)


class Generated(NamedTuple):
    """One turn's images and how they came about."""

    batch: Inverted
    """Every patch counts as kept."""
    curves: dict[str, Tensor]
    """Batch means, one a step: ``loss``, ``confidence`` (the target's probability)."""


def generate_batch(
    task: Task,
    teacher: Teacher,
    objective: Objective,
    student: PatchViT | None,
    turn: int,
    count: int,
    on_step: Callable[[Mapping[str, Tensor]], None] = lambda point: None,
) -> Generated:
    """Train a fresh generator for one draw of noise and labels; return its best batch.

    Parameters
    ----------
    task : Task
        Its settings and its device.
    teacher : Teacher
        Frozen; may differ from the task's own.
    objective : Objective
        What the generator minimises, averaged over the batch.
    student : PatchViT, optional
        The student so far; its parameters get no gradient.
    turn : int
        Each turn draws anew.
    count : int
        Images.
    on_step : callable, optional
        Gets each step's point of every curve, tensors still on the device.
    """
    settings, spec = task.settings, task.model.spec
    config, inversion = settings.generator, settings.inversion
    rng = generator(settings.seed, "generator", turn)
    with seeded_init(settings.seed, "generator-weights", turn):
        maker = Generator(spec, config)
    maker = maker.to(task.device).train()
    noise = torch.randn(count, config.latent, generator=rng).to(task.device)
    targets = draw_targets("balanced", count, task.model.num_classes, rng).to(task.device)
    parameters = list(maker.parameters())
    optimiser = torch.optim.Adam(parameters, config.learning_rate, betas=(0.5, 0.999))
    lowest = torch.tensor(math.inf, device=task.device)
    best: Tensor | None = None
    points: list[dict[str, Tensor]] = []
    for _ in range(config.steps):
        images = maker(noise)
        views = draw_roll_flip(count, spec.size, inversion.roll, inversion.flip, rng)
        viewed = apply_roll_flip(images, views.to(task.device))
        logits = ensemble_logits(teacher, viewed)
        loss = objective(logits, targets, student(viewed).logits if student else None).mean()
        optimiser.zero_grad(set_to_none=True)
        # Named inputs: the student's own gradients are none of the generator's business.
        loss.backward(inputs=parameters)
        optimiser.step()
        # Chosen on the device: reading the loss at every step would stall a GPU.
        images, loss, sure = images.detach(), loss.detach(), logits.detach().softmax(-1)
        best = images if best is None else torch.where(loss < lowest, images, best)
        lowest = torch.minimum(loss, lowest)
        points.append({"loss": loss, "confidence": (targets * sure).sum(-1).mean()})
        on_step(points[-1])
    curves = {name: torch.stack([point[name] for point in points]) for name in points[0]}
    if not curves["loss"].isfinite().all():
        raise TrainingError.diverged("generator", config.learning_rate)
    assert best is not None  # a generator takes one step at least
    keep_idx = torch.arange(task.model.num_patches).expand(count, -1)
    return Generated(Inverted(best, targets, keep_idx, {}), curves)


def generate_and_distil(
    task: Task, objective: Objective, boost: Boost | None = None
) -> MethodResult:
    """Alternate a fresh generator and its adversary's training, then distil on all images.

    Parameters
    ----------
    task : Task
        Its ``inversion.images`` are shared out over the turns. The student that is returned
        takes all its ``distillation.steps`` on the finished pool; the adversary, unless
        ``generator.disagreement`` is 0, a share of as many after each turn but the last, on the
        way and beside them.
    objective : Objective
        The generator's loss. In the first turn there is no student yet (choice).
    boost : Boost, optional
        The ensemble learns each turn between the generator and the adversary; the pool is moved
        anew for each of the adversary's goes, and as often for the student that is returned.

    Raises
    ------
    TrainingError
        If generator or distillation leaves the finite numbers.
    """
    task = task.alter(class_token_only)
    settings, teacher = task.settings, task.teacher
    pool = Pool(task.folder / "pool", task.model.num_patches)
    pool.clear()  # a run that was stopped is begun anew: only FedMITR's own goes on
    against: StudentTraining | None = None
    curves, seconds = [], {"inversion": 0.0}
    turns, steps = number_of_turns(settings), settings.distillation.steps
    for turn in range(turns):
        started = time.monotonic()
        count = share(settings.inversion.images, turn, turns)
        made = _generate(task, teacher, objective, against.model if against else None, turn, count)
        pool.add(made.batch, _provenance(settings, teacher, turn), Place(turn))
        curves.append(made.curves)
        # What is distilled is what is stored.
        data = pool.load(task.device)
        if boost:
            teacher = boost.learn(data, turn)
        seconds["inversion"] += time.monotonic() - started
        if settings.generator.disagreement > 0 and turn < turns - 1:
            lesson = boost.move(data, teacher, turn) if boost else data
            against = against or adversary(task, data.images, turns)
            against.learn_from(teacher)
            against.go_on(lesson, share(steps, turn, turns))
    if against:
        seconds["adversary"] = against.seconds
        del against  # its optimiser holds twice the model
    started, goes = time.monotonic(), turns if boost else 1
    student = StudentTraining(task, data.images)
    student.learn_from(teacher)
    for go in range(goes):
        lesson = boost.move(data, teacher, turns + go) if boost else data
        student.go_on(lesson, share(steps, go, goes))
    model, held_out = student.finish(data)
    seconds["distillation"] = time.monotonic() - started
    return MethodResult(
        model=model,
        teacher=teacher,
        images=len(data),
        inversion_curves={
            name: torch.stack([curve[name] for curve in curves]).mean(0).tolist()
            for name in curves[0]
        },
        distillation_loss=student.losses,
        held_out=held_out,
        seconds=seconds,
    )


def _generate(
    task: Task,
    teacher: Teacher,
    objective: Objective,
    student: PatchViT | None,
    turn: int,
    count: int,
) -> Generated:
    """Make a turn's images and tell how it goes."""
    steps = task.settings.generator.steps
    numbers = iter(range(steps))
    with Progress(f"{task.label}generator", count, parts=steps) as progress:

        def on_step(point: Mapping[str, Tensor]) -> None:
            progress.advance(count, point["loss"])
            task.record("generator", turn=turn, step=next(numbers), **point)

        return generate_batch(task, teacher, objective, student, turn, count, on_step)


def _provenance(settings: MethodSettings, teacher: Teacher, turn: int) -> dict[str, Any]:
    return {
        "seed": settings.seed,
        "turn": turn,
        "teacher": teacher.combine,
        "settings": asdict(settings.generator),
    }
