"""The example project of ``examples/plug-in``, run in this process on a small budget."""

import contextlib
import importlib
import io
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flwr.app import Message

import fedmitr_app.strategies as strategies
from fedmitr_app.config import DistillationConfig, InversionConfig, TeacherConfig
from fedmitr_app.strategies import FedMITR
from tests.helpers.fake_grid import FakeGrid, context

EXAMPLE = Path(__file__).parents[2] / "examples" / "plug-in"
NODES = range(11, 15)
Modules = Callable[[str], ModuleType]


def small_fedmitr(model: Any, **settings: Any) -> FedMITR:
    """FedMITR as the example calls it, on a budget for tests."""
    budget = {
        "teacher": TeacherConfig(probe_images=16),
        "inversion": InversionConfig(images=32, batch_size=32, iterations=2, stops=(0.5,)),
        "distillation": DistillationConfig(steps=5, batch_size=16),
    }
    strategy = FedMITR(model, **budget, **settings)
    strategy.settle_seconds = strategy.poll_seconds = 0.0
    return strategy


@contextlib.contextmanager
def modules_of(project: Path = EXAMPLE) -> Iterator[Modules]:
    """Give a function that imports a module of the example project; they are forgotten after."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(project))
            patch.setattr(strategies, "FedMITR", small_fedmitr)
            yield lambda name: importlib.import_module(f"plugin_example.{name}")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "plugin_example"]:
            del sys.modules[name]


def serve(example: Modules, server: str, **changes: Any) -> list[float]:
    """Run one of the example's servers against its own clients; return its accuracies."""
    client = example("client_app").app
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    run_config = {**project["tool"]["flwr"]["app"]["config"], "local-epochs": 2, **changes}

    def answer(message: Message) -> Message:
        node = {"partition-id": message.metadata.dst_node_id - 11, "num-partitions": len(NODES)}
        return client(message, context(run_config, node))

    grid = FakeGrid(NODES, answer)
    grid.turns = dict.fromkeys(NODES, 0)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        example(server).app(grid, context(run_config))
    lines = [line for line in out.getvalue().splitlines() if line.startswith("round")]
    return [float(line.rpartition(" ")[2]) for line in lines]
