"""What the benchmarks share: hardware, clocks, and one tidy table of all that was measured."""

import ctypes
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from fedmitr_app.config import ModelConfig, TeacherConfig
from fedmitr_app.models import InputSpec, PatchViT, build_vit
from fedmitr_app.teacher import ClientModel, Teacher
from fedmitr_app.utils.environment import describe_environment

CLASSES = 10
KEYS = ("benchmark", "case", "measure")


def print_hardware() -> dict[str, str]:
    """Print, and return, what a reader needs to place a figure: machine, versions, commit."""
    facts = describe_environment()
    packages = facts["packages"]
    commit = facts["commit"] or {"id": "unknown", "dirty": False}
    changed = " with uncommitted changes" if commit["dirty"] else ""
    told = {
        "hardware": f"{facts['cpu']}, {facts['cores']} cores, GPUs: {facts['gpus'] or 'none'}",
        "threads": f"{torch.get_num_threads()}, {platform.system()}, Python {facts['python']}",
        "versions": f"torch {packages.get('torch')}, timm {packages.get('timm')}",
        "commit": f"{commit['id'][:12]}{changed}",
    }
    for name, value in told.items():
        print(f"{name}: {value}", flush=True)
    return told


class Results:
    """One line for each figure, printed as it is measured and kept for the CSV.

    Parameters
    ----------
    facts : Mapping[str, str]
        Of :func:`print_hardware`; they stand in every line.
    """

    def __init__(self, facts: Mapping[str, str]) -> None:
        self.facts = dict(facts)
        self.lines: list[dict[str, Any]] = []

    def add(
        self, benchmark: str, case: str, measure: str, value: float, unit: str, **of: Any
    ) -> None:
        """Keep one figure; ``of`` says of what: clients, batch, patches, iterations..."""
        line = {"benchmark": benchmark, "case": case, "measure": measure}
        self.lines.append({**line, "value": value, "unit": unit, **of, **self.facts})
        print(f"{benchmark}: {case}: {measure} {value:.4g} {unit}", flush=True)

    def table(self) -> pd.DataFrame:
        """All figures so far."""
        return pd.DataFrame(self.lines, columns=None if self.lines else [*KEYS, "value"])

    def compare(self, read: pd.DataFrame, path: Path) -> None:
        """Print every figure over the one of an earlier run's CSV, read before this one's."""
        earlier = read.set_index(list(KEYS))["value"]
        print(f"\nover {path} ({read.get('hardware', pd.Series(['unknown'])).iloc[0]}):")
        for key, value in self.table().set_index(list(KEYS))["value"].items():
            if key in earlier.index:
                print(f"{': '.join(key)}: {value:.4g} / {earlier[key]:.4g}")


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Return the median seconds of ``work`` after a warm-up."""
    return statistics.median(in_turn({"": work}, device, repeats)[""])


def in_turn(
    works: Mapping[str, Callable[[], object]], device: torch.device, repeats: int = 3
) -> dict[str, list[float]]:
    """Time several works in turns, so that a slow minute of the machine slows them all alike."""
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            synchronise(device)
            started = time.perf_counter()
            work()
            synchronise(device)
            found[name].append(time.perf_counter() - started)
    return found


def status_of(what: str) -> float:
    """Return a line of this process's status, in MiB (Linux alone)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+)", status)[1]) / 1024


def peak_memory(work: Callable[[], object], device: torch.device) -> float:
    """Return the most that ``work`` holds at once beside what was held before, in MiB.

    On a CPU what the system gives this process (Linux alone), on a GPU what torch hands out.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would be used again, unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = status_of("VmRSS")
    work()
    return status_of("VmHWM") - before


def median_ratio(over: list[float], under: list[float]) -> float:
    """Return the median of the turns' ratios."""
    return statistics.median(one / other for one, other in zip(over, under, strict=True))


def random_vit(
    name: str, size: int, device: torch.device, seed: int = 0, precision: str = "float32"
) -> PatchViT:
    """Build a model with random weights: ``small`` takes grey images, all others colour."""
    channels = 1 if name == "small" else 3
    spec = InputSpec(size, channels, (0.5,) * channels, (0.5,) * channels)
    config = ModelConfig(name=name, precision=precision)
    return build_vit(config, spec, CLASSES, seed).to(device)


def random_teacher(
    name: str, size: int, clients: int, device: torch.device, precision: str = "float32"
) -> Teacher:
    """Build K different models with random weights, combined by the mean of logits."""
    models = [random_vit(name, size, device, seed, precision) for seed in range(clients)]
    members = [ClientModel(f"client-{k:03d}", model, 100) for k, model in enumerate(models)]
    return Teacher.build(members, TeacherConfig(combine="mean-logits"), lambda: torch.empty(0))
