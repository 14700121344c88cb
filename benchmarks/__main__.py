"""Speed and memory, every figure a ratio or a rate measured in this run.

    python -m benchmarks                         # minutes on two cores
    python -m benchmarks --size gpu --out speed  # DeiT-Tiny and -Base at 224 px, K = 1, 5, 10
    python -m benchmarks --only schedules growth --against earlier/results.csv

Prints each figure as it is measured; the folder gets ``results.csv`` (with hardware, versions
and commit in every line), ``growth.png`` and ``profile.txt``, where the hot loop's time goes.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.common import Results, print_hardware
from benchmarks.figures import growth_figure
from benchmarks.inversion import (
    Inverter,
    Size,
    against_published,
    growth,
    savings,
    schedules,
    settings,
)
from benchmarks.learning import distillation, training
from benchmarks.memory import memory
from benchmarks.on_ray import on_ray
from benchmarks.whole_run import whole_run

DEFAULT = Size("small", 28, 5, 512, 15, asked=2)
SMALL = Size("small", 28, 5, 128, 40)
DEIT = Size("deit_tiny_patch16_224", 96, 2, 16, 20)
ONE = DEIT._replace(image=224, clients=1, batch=8)
TINY = Size("deit_tiny_patch16_224", 224, 5, 128, 100, "bfloat16")
BASE = Size("deit_base_patch16_224", 224, 5, 64, 100, "bfloat16")
SIZES = {
    "cpu": {
        "schedules": [DEFAULT, SMALL, ONE],
        "published": [SMALL._replace(batch=32), DEIT, ONE, ONE._replace(precision="bfloat16")],
        "growth": [SMALL._replace(clients=2, batch=32)],
        "options": [SMALL],
        "distillation": [SMALL._replace(batch=64), DEIT],
        "training": [SMALL._replace(batch=32)],
    },
    "gpu": {
        "schedules": [
            each._replace(clients=clients) for each in (TINY, BASE) for clients in (1, 5, 10)
        ],
        "published": [
            each._replace(clients=clients, batch=32)
            for each in (TINY, BASE)
            for clients in (1, 5, 10)
        ],
        "growth": [TINY._replace(clients=2, batch=64, image=112)],
        "options": [TINY, BASE],
        "distillation": [TINY._replace(batch=64)],
        "training": [TINY._replace(batch=64)],
    },
}
EACH: dict[str, Callable[[Results, Size, torch.device], None]] = {
    "schedules": schedules,
    "published": against_published,
    "growth": growth,
    "options": savings,
    "distillation": distillation,
    "training": training,
}
PARTS = (*EACH, "profile", "memory", "ray", "run")


def profile(folder: Path, size: Size, device: torch.device) -> None:
    """Write where the sparse loop's time goes, operation by operation."""
    work = Inverter(size, settings(size), size.teacher(device))
    work()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        work()
    key = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
    table = profiler.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=45)
    (folder / "profile.txt").write_text(f"{size}\n{table}\n")
    print(f"profile: {folder / 'profile.txt'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--against", type=Path, help="an earlier run's results.csv")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    asked = parser.parse_args(arguments)
    if asked.size == "gpu" and not torch.cuda.is_available():
        parser.error("--size gpu needs a CUDA device, and none is visible: use --size cpu")
    # Before this run's own table may take its place.
    earlier = pd.read_csv(asked.against) if asked.against else None
    device = torch.device("cuda" if asked.size == "gpu" else "cpu")
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    results = Results(print_hardware())
    sizes = SIZES[asked.size]
    for part in asked.only:
        for size in sizes.get(part, ()):
            EACH[part](results, size, device)
        if part == "profile":
            profile(asked.out, sizes["options"][0], device)
        elif part == "memory":
            memory(results)
        elif part == "ray":
            on_ray(results)
        elif part == "run":
            whole_run(results)
        results.table().to_csv(asked.out / "results.csv", index=False)
        growth_figure(results.table(), asked.out / "growth.png")
    if earlier is not None:
        results.compare(earlier, asked.against)
    print(f"figures and table: {asked.out}")


if __name__ == "__main__":
    main()
