"""What an inversion costs: schedules against each other, the published loop, and each size."""

import statistics
from dataclasses import replace
from typing import NamedTuple

import torch

from benchmarks.common import (
    CLASSES,
    Results,
    in_turn,
    median_ratio,
    peak_memory,
    random_teacher,
    seconds,
)
from benchmarks.published import published_inversion
from fedmitr_app.config import InversionConfig, ModelConfig
from fedmitr_app.errors import ConfigError
from fedmitr_app.inversion import Schedule, draw_initial_images, invert_batch
from fedmitr_app.inversion.flops import flop_ratio, step_flops
from fedmitr_app.inversion.targets import draw_members, draw_targets
from fedmitr_app.models import require_compiler, resolve_auto
from fedmitr_app.teacher import Teacher
from fedmitr_app.utils.randomness import generator

REFERENCE = (50 / 4000, 100 / 4000, 200 / 4000, 300 / 4000)
"""The stops of the published schedule, as shares of its 4000 iterations."""


class Size(NamedTuple):
    """What is inverted, by whom."""

    model: str
    image: int
    clients: int
    batch: int
    iterations: int
    precision: str = "float32"
    asked: int = 0
    """Clients for each image; 0: all."""

    def __str__(self) -> str:
        parts = f"K={self.clients} batch={self.batch} iterations={self.iterations}"
        some = f" {self.asked} clients an image" if self.asked else ""
        return f"{self.model} {self.image}px {parts} {self.precision}{some}"

    def teacher(self, device: torch.device) -> Teacher:
        """Such clients, with random weights."""
        return random_teacher(self.model, self.image, self.clients, device, self.precision)

    @property
    def of(self) -> dict[str, object]:
        """For the table's columns."""
        return dict(self._asdict())


def settings(size: Size, **changes: object) -> InversionConfig:
    """The reference schedule, one start."""
    plain = {
        "iterations": size.iterations,
        "candidates": 1,
        "teachers_per_image": size.asked,
        "stops": REFERENCE,
        "targets": "balanced",
    }
    return replace(InversionConfig(), **{**plain, **changes})


class Inverter:
    """Inverts one batch, again and again."""

    def __init__(self, size: Size, config: InversionConfig, teacher: Teacher) -> None:
        self.config, self.teacher = config, teacher
        model, rng = teacher.models[0], generator(0, "benchmark")
        device = next(model.parameters()).device
        self.starts = draw_initial_images("procedural", size.batch, model.spec, rng).to(device)
        self.targets = draw_targets("balanced", size.batch, CLASSES, rng).to(device)
        members = draw_members(teacher, self.targets, config.teachers_per_image, rng)
        self.members = None if members is None else members.to(device)

    def __call__(self) -> None:
        """Take every iteration once."""
        rng = generator(0, "views")
        invert_batch(
            self.teacher, self.starts, self.targets, self.config, rng, members=self.members
        )


def ceiling(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of a large matrix product: the most that this device gives."""
    wide = 8192 if device.type == "cuda" else 2048
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    one = torch.randn(wide, wide, device=device, dtype=kind)
    return 2 * wide**3 / seconds(lambda: one @ one, device, repeats=5)


def schedules(results: Results, size: Size, device: torch.device, repeats: int = 3) -> None:
    """Sparse against dense, with the reference's stops and the default's, and the ceiling."""
    teacher = size.teacher(device)
    model, case = teacher.models[0], str(size)
    configs = {
        "dense": settings(size, schedule="dense"),
        "sparse": settings(size),
        "sparse, default stops": settings(size, stops=InversionConfig().stops),
    }
    works = {name: Inverter(size, config, teacher) for name, config in configs.items()}
    held = {name: peak_memory(work, device) for name, work in works.items()}
    taken = in_turn(works, device, repeats)
    passes = (size.asked or size.clients) * size.batch * size.iterations
    flops = step_flops(model, model.num_patches) * passes
    most = ceiling(device, size.precision)
    results.add("schedules", case, "peak", most / 1e9, "GFLOP/s", **size.of)
    for name, config in configs.items():
        counts = Schedule.build(config).counts(model.num_patches, size.iterations)
        share = flop_ratio(model, counts)
        typical = sorted(taken[name])[repeats // 2]
        figures = {
            "time": (typical, "s"),
            "images": (size.batch / typical, "/s"),
            "of the peak": (flops * share / typical / most, ""),
            "peak memory": (held[name], "MiB"),
        }
        if name != "dense":
            measured = median_ratio(taken["dense"], taken[name])
            figures |= {
                "FLOPs: dense over it": (1 / share, ""),
                "time: dense over it": (measured, ""),
                "of what FLOPs promise": (measured * share, ""),
            }
        for measure, (value, unit) in figures.items():
            results.add("schedules", case, f"{name}: {measure}", value, unit, **size.of)


def against_published(results: Results, size: Size, device: torch.device, repeats: int = 3) -> None:
    """Our loop over the published one's throughput, both schedules.

    Ours multiplies as ``model.matmul = "auto"`` has it here; the published one in float32.
    """
    ours = size.teacher(device)
    asked = ModelConfig(precision=size.precision, matmul="auto")
    matmul = resolve_auto(asked, ours.models[0], device).matmul
    for model in ours.models:
        model.matmul = matmul
    case = f"{size}, by {matmul}"
    theirs = size._replace(precision="float32").teacher(device).models
    model, rng = ours.models[0], generator(0, "benchmark")
    starts = draw_initial_images("white", size.batch, model.spec, rng).to(device)
    targets = torch.arange(size.batch, device=device) % CLASSES
    for name in ("dense", "sparse"):
        config = settings(size, schedule=name)
        counts = Schedule.build(config).counts(model.num_patches, size.iterations)
        taken = in_turn(
            {
                "ours": Inverter(size, config, ours),
                "theirs": lambda counts=counts: published_inversion(
                    theirs, starts, targets, counts
                ),
            },
            device,
            repeats,
        )
        faster = median_ratio(taken["theirs"], taken["ours"])
        of = {**size.of, "matmul": matmul}
        results.add("published loop", case, f"{name}: ours over its", faster, "", **of)


GROWS = ("clients", "batch", "image", "iterations")


def growth(results: Results, base: Size, device: torch.device, doublings: int = 2) -> None:
    """Double one size after the other: time, and memory at its peak."""
    for name in GROWS:
        sizes = [
            base._replace(**{name: getattr(base, name) * 2**doubling})
            for doubling in range(doublings + 1)
        ]
        works = {size: Inverter(size, settings(size), size.teacher(device)) for size in sizes}
        held = {size: peak_memory(work, device) for size, work in works.items()}
        taken = in_turn(works, device, repeats=7)
        for half, size in zip([None, *sizes], sizes):
            time = statistics.median(taken[size])
            figures = {"time": (time, "s"), "peak memory": (held[size], "MiB")}
            if half:
                figures["over half"] = (median_ratio(taken[size], taken[half]), "")
                figures["peak memory over half"] = (held[size] / held[half], "")
            for measure, (value, unit) in figures.items():
                results.add(f"growth of {name}", str(size), measure, value, unit, **size.of)


def savings(results: Results, size: Size, device: torch.device) -> None:
    """Measure options that buy time: who serves, in which way, over a plain loop over models."""
    teacher = size.teacher(device)
    some = max(1, size.clients // 2)
    plain = settings(size, ensemble="loop")
    options = {
        "plain": plain,
        "models stacked": replace(plain, ensemble="stacked"),
        "loop or stack, as is faster": replace(plain, ensemble="auto"),
        f"{some} clients an image": replace(plain, teachers_per_image=some),
        "each client's own loss": replace(plain, loss="per-teacher"),
        "frugal gradient": replace(plain, gradient="frugal"),
    }
    works = {name: Inverter(size, config, teacher) for name, config in options.items()}
    try:
        require_compiler(device)
    except ConfigError as error:
        print(f"blocks compiled: not measured. {error}")
    else:
        compiled = size.teacher(device)
        for model in compiled.models:
            model.compiled = True
        works["blocks compiled"] = Inverter(size, options["plain"], compiled)
    taken = in_turn(works, device)
    for name in list(works)[1:]:
        ratio = median_ratio(taken[name], taken["plain"])
        results.add("options", str(size), f"{name}: time over plain", ratio, "", **size.of)
