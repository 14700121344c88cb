"""Memory of a server that collects uploads, and of one that holds them as its teacher.

    python -m benchmarks --only memory

Each count runs in a process of its own. Collecting: replies pass through the strategy that
spools them, then are averaged. Teaching: as many uploads of DeiT-Tiny are loaded and asked; on
a CPU their weights are mapped from disk, so that what the process itself holds hardly grows.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.common import Results, random_vit
from fedmitr_app.config import ModelConfig
from fedmitr_app.methods import MethodSettings, Task
from fedmitr_app.models import InputSpec, build_vit
from fedmitr_app.strategies import OneShotFedAvg
from fedmitr_app.uploads import Upload
from fedmitr_app.uploads.upload import save_state

COLLECTED = (5, 20)
TAUGHT = (5, 20, 100)
WEIGHTS = 22.2  # MB, of one DeiT-Tiny with ten classes


def replies(count: int, states: dict[str, torch.Tensor]) -> Iterator[Message]:
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
        message = Mock(spec=Message)
        message.content = content
        message.has_error.return_value = False
        message.has_content.return_value = True
        message.metadata.src_node_id = number
        message.metadata.reply_to_message_id = str(number)
        yield message


def status_of(what: str) -> float:
    """Return a line of this process's status, in MiB (Linux alone)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+)", status)[1]) / 1024


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
        strategy = OneShotFedAvg(run_dir=Path(folder), expected_nodes=1)
        # As start() does, which needs a SuperLink.
        strategy._started, strategy._timeout = True, 60.0
        list(strategy.configure_train(1, ArrayRecord(state), ConfigRecord(), grid))
        strategy.aggregate_train(1, replies(count, state))
        assert len(strategy.outcome.accepted) == count, strategy.outcome
    # Not getrusage's, which begins with what the process that started this one had.
    print(status_of("VmHWM"))


def teach(count: int) -> None:
    """Load and ask ``count`` uploads; print what this process holds, files apart, in MiB."""
    device, images = torch.device("cpu"), torch.zeros(8, 3, 96, 96)
    model = random_vit("deit_tiny_patch16_224", 96, device)
    with tempfile.TemporaryDirectory() as folder:
        uploads = []
        for number in range(count):
            path = Path(folder) / f"{number:03d}.safetensors"
            state = model.vit.state_dict()
            save_state({key: (value + number).numpy() for key, value in state.items()}, path)
            uploads.append(Upload(f"client-{number:03d}", 100, path))
        task = Task.load(model, uploads, MethodSettings(), Path(folder), device)
        with torch.inference_mode():
            for client in task.clients:
                client.model(images)
        print(status_of("RssAnon"))


def memory(results: Results) -> None:
    """Measure every count, each in its own process."""
    for what, counts in (("collect", COLLECTED), ("teach", TAUGHT)):
        found = []
        for count in counts:
            command = [sys.executable, "-m", "benchmarks.memory", what, str(count)]
            out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
            found.append(float(out.stdout.strip().splitlines()[-1]))
            case = f"{count} uploads of DeiT-Tiny ({WEIGHTS} MB each)"
            kind = "peak" if what == "collect" else "held, files apart"
            results.add(f"memory: {what}", case, kind, found[-1], "MiB", clients=count)
            if len(found) > 1:
                results.add(
                    f"memory: {what}", case, "over the fewest", found[-1] / found[0], ""
                )


if __name__ == "__main__":
    {"collect": collect, "teach": teach}[sys.argv[1]](int(sys.argv[2]))
