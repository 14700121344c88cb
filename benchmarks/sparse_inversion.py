"""Sparse against dense inversion at equal iterations: time, FLOPs, and the student's accuracy.

    python -m benchmarks.sparse_inversion --seeds 0 1 2

Both schedules run in turn, in one process, on the same uploads; the figure to quote is the
ratio of their times, beside the FLOP ratio that the schedule predicts.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.common import initial_model, print_hardware, train_uploads, without_counts
from fedmitr_app.comparison import TestBench
from fedmitr_app.config import Config, parse_config
from fedmitr_app.fusion import FusionSettings, build_teacher, fuse_by_inversion, load_clients
from fedmitr_app.inversion import Schedule
from fedmitr_app.inversion.flops import flop_ratio
from fedmitr_app.partitions import load_test_set
from fedmitr_app.uploads import average

SCHEDULES = ("dense", "sparse")


def measure(config: Config, clients: int) -> dict[str, dict[str, float]]:
    """Return seconds, accuracy and FLOP ratio of each schedule on one seed's uploads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = initial_model(config)
        uploads = without_counts(train_uploads(config, clients, folder / "uploads"))
        members = load_clients(model, uploads, torch.device("cpu"))
        teacher = build_teacher(members, config.teacher, config.seed)
        test = load_test_set(config.data)
        bench = TestBench(test.images, test.labels, model, torch.device("cpu"), 256)
        results = {}
        for schedule in SCHEDULES:
            inversion = replace(config.inversion, schedule=schedule)
            settings = FusionSettings(config.teacher, inversion, config.distillation, config.seed)
            fusion = fuse_by_inversion(
                model, members, average(uploads), teacher, settings, folder / schedule
            )
            results[schedule] = {
                "seconds": fusion.inversion_seconds,
                "accuracy": bench.model_accuracy(fusion.student),
                "flop_ratio": flop_ratio(
                    teacher.models[0], Schedule.build(inversion), inversion.iterations
                ),
            }
            print(f"seed {config.seed} {schedule}: {results[schedule]}", flush=True)
    return results


def main() -> None:
    """Measure each seed, then print ratios and means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--preset", default="default")
    arguments = parser.parse_args()
    print_hardware()
    runs = [
        measure(parse_config({"seed": seed, "preset": arguments.preset}), arguments.clients)
        for seed in arguments.seeds
    ]
    speedups = [run["dense"]["seconds"] / run["sparse"]["seconds"] for run in runs]
    predicted = 1 / runs[0]["sparse"]["flop_ratio"]
    speedup = statistics.mean(speedups)
    print(f"FLOP ratio sparse/dense {1 / predicted:.3f}, so {predicted:.2f} times faster predicted")
    print(f"measured {speedup:.2f} times faster: {speedup / predicted:.0%} of the prediction")
    for schedule in SCHEDULES:
        values = [100 * run[schedule]["accuracy"] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{schedule}: student {statistics.mean(values):.1f} ± {spread:.1f} %")


if __name__ == "__main__":
    main()
