"""Peak memory of collecting uploads: 20 against 5, apart from the ensemble itself.

    python -m benchmarks.server_memory

Each count runs in a process of its own: its replies pass through the strategy that spools
them, then are averaged. The ensemble isn't loaded, so that what grows is what leaks.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.common import print_hardware
from fedmitr_app.config import ModelConfig
from fedmitr_app.models import InputSpec, build_vit
from fedmitr_app.strategies import OneShotFedAvg

COUNTS = (5, 20)


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
        list(strategy.configure_train(1, ArrayRecord(state), ConfigRecord(), grid))
        strategy.aggregate_train(1, replies(count, state))
        assert len(strategy.outcome.accepted) == count, strategy.outcome
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure both counts and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.collect:
        collect(arguments.collect)
        return
    print_hardware()
    peaks = []
    for count in COUNTS:
        command = [sys.executable, "-m", "benchmarks.server_memory", "--collect", str(count)]
        out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        peaks.append(float(out.stdout.strip().splitlines()[-1]))
        print(f"{count} uploads of DeiT-Tiny (22 MB each): peak {peaks[-1]:.0f} MiB", flush=True)
    print(f"20 uploads over 5: {peaks[1] / peaks[0]:.3f} (bar: below 1.2)")


if __name__ == "__main__":
    main()
