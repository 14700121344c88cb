"""The main result: ``flwr run`` over several seeds, as a Markdown table.

    python -m benchmarks.main_table runs/main --seeds 0 1 2

Each seed is one true run into ``<folder>/seed<seed>``; a folder that is there already is
read, not run again, so that the table can be made anew. Run it from the project's root.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import print_hardware

ROWS = ("student", "teacher", "control", "fedavg")
RUN_LIMIT_SECONDS = 7200


def run_once(folder: Path, seed: int, clients: int, extra: str) -> dict[str, Any]:
    """Run one seed, unless its metrics are there, and return them."""
    metrics = folder / "metrics.json"
    if not metrics.exists():
        federation = f"num-supernodes={clients} client-resources-num-cpus=1"
        federation += " client-resources-num-gpus=0.0"
        settings = f"seed={seed} output.run-dir='{folder.resolve()}' {extra}"
        command = ["flwr", "run", ".", "--stream"]
        command += ["--federation-config", federation, "--run-config", settings]
        environment = {**os.environ, "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
        started = time.monotonic()
        subprocess.run(command, check=True, env=environment, timeout=RUN_LIMIT_SECONDS)
        print(f"seed {seed}: {time.monotonic() - started:.0f} s, the command as a whole")
        if not metrics.exists():  # flwr run --stream exits 0 even when the run fails
            raise SystemExit(f"seed {seed}: the run failed, its log above says why")
    return json.loads(metrics.read_text())


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return mean ± standard deviation over the runs, in percent, as Markdown."""
    # Some may be missing: the control can be turned off, an ensemble has no student.
    accuracies = [run["accuracy"] for run in runs]
    found = {name: [accuracy.get(name) for accuracy in accuracies] for name in ROWS}
    values = {name: row for name, row in found.items() if None not in row}
    clients = [accuracy.get("clients") for accuracy in accuracies]
    if all(clients):
        values["best single client"] = [max(scores.values()) for scores in clients]
    if {"student", "teacher"} <= values.keys():
        pairs = zip(values["student"], values["teacher"], strict=True)
        values["student / teacher"] = [student / teacher for student, teacher in pairs]
    lines = ["| | " + " | ".join(f"seed {run['seed']}" for run in runs) + " | mean ± sd |"]
    lines.append("|---" * (len(runs) + 2) + "|")
    for name, row in values.items():
        percent = 100 * np.array(row)
        spread = percent.std(ddof=1) if len(row) > 1 else float("nan")
        cells = [f"{value:.1f}" for value in percent]
        lines.append(f"| {name} | {' | '.join(cells)} | {percent.mean():.1f} ± {spread:.1f} |")
    for name in ("training", "inversion", "distillation", "control", "total"):
        seconds = [run["seconds"].get(name) for run in runs]
        if None in seconds:
            continue
        cells = " | ".join(f"{value:.0f}" for value in seconds)
        lines.append(f"| {name}, s | {cells} | {np.mean(seconds):.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--run-config", default="", help="more settings, as for flwr run")
    arguments = parser.parse_args()
    print_hardware()
    runs = [
        run_once(arguments.folder / f"seed{seed}", seed, arguments.clients, arguments.run_config)
        for seed in arguments.seeds
    ]
    print(table(runs))


if __name__ == "__main__":
    main()
