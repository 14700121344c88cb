"""Kill runs at random moments, go on with them, and compare with a run that was never killed.

    python -m tests.crashes --cycles 200

Each cycle forks a whole run (three clients, two rounds of inversion and distillation, control,
evaluation, report), kills it with SIGKILL a random time after a random stage began, and goes on
with it in the same folder under ``output.resume = true``; one to three kills, then it may
complete. It prints the stages that were hit, and fails if a single bit differs.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from fedmitr_app.distillation import distil
from fedmitr_app.methods import student
from tests.helpers.federation import Federation, without_processes

SETTINGS = {
    "output.resume": True,
    "server.timeout": 3600.0,  # a client that is late on a busy machine is not what is tested
    "inversion.images": 32,
    "distillation.steps": 12,
    "distillation.repeats": 2,
}
VOLATILE = ("seconds", "throughput")
# By what is there when they begin.
STAGES = (
    ("the beginning", ""),
    ("the uploads", "uploads/*.safetensors"),
    ("the inversion", "round.json"),
    ("the second shard", "pool/pool-00000-00000*"),
    ("the distillation", "distillation.safetensors"),
    ("the control or the evaluation", "control/*"),
    ("the figures and the report", "evaluation.json"),
    ("the report's last lines", "report.html"),
)
MAX_DELAY = 0.3
"""Seconds until the kill."""
# Else most kills would hit imports.
LOADED_LATE = ("fedmitr_app.server_app", "fedmitr_app.report.figures", "matplotlib.pyplot")


def settle(folder: Path) -> None:
    """Do or go on with the run in this process."""
    Federation(folder).run(**SETTINGS)


def fork_run(folder: Path, stage: int | None = None, delay: float = 0.0) -> str | None:
    """Run in a child. Kill it some seconds after a stage began; say in which stage it died.

    None if it completed, in time or because it was not to be killed.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            settle(folder)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    deadline = None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code > 0:
                raise SystemExit(folder.with_suffix(".log").read_text())
            return None if code == 0 else STAGES[stage_of(folder)][0]
        if deadline is None and stage is not None and stage_of(folder) >= stage:
            deadline = time.monotonic() + delay
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)


def stage_of(folder: Path) -> int:
    """Tell a run's stage by what it left: a number in ``STAGES``."""
    reached = 0
    for stage, (_, mark) in enumerate(STAGES):
        # What is looked through may vanish meanwhile: the run removes folders, too.
        with contextlib.suppress(OSError):
            if mark and any(folder.glob(mark)):
                reached = stage
    return reached


def result_of(folder: Path) -> dict:
    """Return all that must be the same to the last bit."""
    metrics = json.loads((folder / "metrics.json").read_text())
    files = [folder / "global_model.safetensors", *sorted((folder / "pool").iterdir())]
    tensors = {
        f"{file.name} {name}": value.numpy().tobytes()
        for file in files
        for name, value in load_file(file).items()
    }
    uploads = {path.name: path.read_bytes() for path in (folder / "uploads").glob("*.safetensors")}
    steady = {key: value for key, value in metrics.items() if key not in VOLATILE}
    return {"metrics": steady, **tensors, **uploads}


def crash_and_compare(cycles: int, seed: int, parent: Path) -> Counter[str]:
    """Do the cycles; return in which stages the runs were killed."""
    torch.set_num_threads(1)  # a fork must not inherit OpenMP's threads
    # So that little runs have checkpoints to go on from.
    student.CHECKPOINT_SECONDS, distil.STEPS_BETWEEN_CHECKS = 0.0, 2
    without_processes(setattr)
    rng = random.Random(seed)
    for name in LOADED_LATE:
        importlib.import_module(name)
    if (died := fork_run(parent / "whole")) is not None:
        raise SystemExit(f"the run that nobody kills died in {died}")
    expected = result_of(parent / "whole")
    killed: Counter[str] = Counter()
    for cycle in range(cycles):
        folder = parent / f"cycle-{cycle}"
        for stage in sorted(rng.sample(range(len(STAGES)), rng.randint(1, 3))):
            if (died := fork_run(folder, stage, rng.uniform(0.0, MAX_DELAY))) is not None:
                killed[died] += 1
        if (died := fork_run(folder)) is not None:
            raise SystemExit(f"cycle {cycle} in {folder} died of itself in {died}")
        found = result_of(folder)
        differing = [name for name in expected if found.get(name) != expected[name]]
        if differing or found.keys() != expected.keys():
            files = Counter(name.partition(" ")[0] for name in differing)
            uploads = [result["metrics"]["uploads"] for result in (expected, found)]
            raise SystemExit(f"cycle {cycle} in {folder} differs: {dict(files)}; {uploads}")
    return killed


def main() -> None:
    """Read the arguments, do the cycles, print what was killed where."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedmitr-crashes-") as parent:
        killed = crash_and_compare(arguments.cycles, arguments.seed, Path(parent))
    for stage, count in killed.most_common():
        print(f"killed in {stage}: {count}")
    print(f"{arguments.cycles} runs completed, {sum(killed.values())} kills, no result differs")


if __name__ == "__main__":
    main()
