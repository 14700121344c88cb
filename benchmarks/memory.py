"""Memory of a server that collects uploads, and of one that holds them as its teacher.

    python -m benchmarks --only memory

Each count runs in a process of its own. Collecting: replies pass through the strategy that
spools them, then are averaged. Teaching: as many uploads of DeiT-Tiny are probed, inverted (two
clients an image) and distilled, on a CPU, where their weights are mapped from disk, so that what
the process itself holds hardly grows.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.common import Results, random_vit, status_of
from fedmitr_app.config import DistillationConfig, InversionConfig, ModelConfig, TeacherConfig
from fedmitr_app.methods import METHODS, MethodSettings, Task
from fedmitr_app.models import InputSpec, build_vit
from fedmitr_app.strategies import OneShotStrategy
from fedmitr_app.uploads import Upload
from fedmitr_app.uploads.upload import save_state

COUNTS = (5, 20, 100)
SECONDS_BETWEEN_LOOKS = 0.02
WEIGHTS = 22.2  # MB, of one DeiT-Tiny with ten classes


def replies(count: int, states: dict[str, torch.Tensor]) -> Iterator[SimpleNamespace]:
    """Yield one reply at a time, as the streaming grid does; each is made when asked for."""
    for number in range(count):
        arrays = {name: value + 0.001 * number for name, value in states.items()}
        content = RecordDict(
            {
                "arrays": ArrayRecord(arrays),
                "metrics": MetricRecord({"num-examples": 100}),
                "upload": ConfigRecord({"client-key": f"client-{number:03d}", "status": "ok"}),
            }
        )
        # Not a mock, whose cycles would hold it until they are collected.
        yield SimpleNamespace(
            content=content,
            has_error=lambda: False,
            has_content=lambda: True,
            metadata=SimpleNamespace(src_node_id=number, reply_to_message_id=str(number)),
        )
        del arrays, content  # nor while the next one is made


def collect(count: int) -> None:
    """Spool and average ``count`` uploads, then print this process's peak memory in MiB."""
    for name in ("_run_id", "_node_id", "_task_id"):  # messages can't be built outside a run
        setattr(TaskIdentity, name, 1)
    model = build_vit(
        ModelConfig(name="deit_tiny_patch16_224"), InputSpec(224, 3, (0.5,), (0.5,)), 10, 0
    )
    state = model.vit.state_dict()
    grid = Mock()
    grid.get_node_ids.return_value = [1]
    with tempfile.TemporaryDirectory() as folder:
        strategy = OneShotStrategy(
            model, "fedavg", device="cpu", run_dir=Path(folder), expected_nodes=1
        )
        # As start() does, which needs a SuperLink.
        strategy._started, strategy._timeout = True, 60.0
        list(strategy.configure_train(1, ArrayRecord(state), ConfigRecord(), grid))
        strategy.aggregate_train(1, replies(count, state))
        assert len(strategy.outcome.accepted) == count, strategy.outcome
    # Not getrusage's, which begins with what the process that started this one had.
    print(status_of("VmHWM"))


def teach(count: int) -> None:
    """Do all of a server's work with ``count`` uploads; print the most that it held, in MiB.

    Mapped files apart, which the system may drop.
    """
    settings = MethodSettings(
        teacher=replace(TeacherConfig(), probe_images=64),
        inversion=replace(InversionConfig(), images=32, batch_size=32, iterations=8, candidates=2),
        distillation=replace(DistillationConfig(), steps=4, batch_size=16),
    )
    held: list[float] = []
    threading.Thread(target=_watch, args=(held,), daemon=True).start()
    device = torch.device("cpu")
    model = random_vit("deit_tiny_patch16_224", 96, device)
    with tempfile.TemporaryDirectory() as folder:
        uploads = []
        for number in range(count):
            path = Path(folder) / f"{number:03d}.safetensors"
            state = model.vit.state_dict()
            changed = {key: value * (1 + 0.001 * number) for key, value in state.items()}
            save_state({key: value.numpy() for key, value in changed.items()}, path)
            uploads.append(Upload(f"client-{number:03d}", 100, path))
        METHODS["fedmitr"](Task.load(model, uploads, settings, Path(folder), device))
    print(max(held))


def _watch(held: list[float]) -> None:
    while True:
        held.append(status_of("RssAnon"))
        time.sleep(SECONDS_BETWEEN_LOOKS)


def memory(results: Results) -> None:
    """Measure every count, each in its own process."""
    for what in ("collect", "teach"):
        found = []
        for count in COUNTS:
            command = [sys.executable, "-m", "benchmarks.memory", what, str(count)]
            out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
            found.append(float(out.stdout.strip().splitlines()[-1]))
            case = f"{count} uploads of DeiT-Tiny ({WEIGHTS} MB each)"
            kind = "peak" if what == "collect" else "peak, mapped files apart"
            results.add(f"memory: {what}", case, kind, found[-1], "MiB", clients=count)
            if len(found) > 1:
                results.add(f"memory: {what}", case, "over the fewest", found[-1] / found[0], "")


if __name__ == "__main__":
    {"collect": collect, "teach": teach}[sys.argv[1]](int(sys.argv[2]))
