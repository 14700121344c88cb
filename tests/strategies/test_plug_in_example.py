"""The example project: one line between FedAvg and FedMITR, and both run."""

import difflib
import importlib
import inspect
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from flwr.app import Message

import fedmitr_app.strategies as strategies
from fedmitr_app.config import DistillationConfig, InversionConfig, TeacherConfig
from fedmitr_app.strategies import FedMITR
from tests.helpers.fake_grid import FakeGrid, context

EXAMPLE = Path(__file__).parents[2] / "examples" / "plug-in"
NODES = range(11, 15)


def small_fedmitr(model, **settings):
    """FedMITR as the example calls it, on a budget for tests."""
    budget = {
        "teacher": TeacherConfig(probe_images=16),
        "inversion": InversionConfig(images=32, batch_size=32, iterations=2, stops=(0.5,)),
        "distillation": DistillationConfig(steps=5, batch_size=16),
    }
    strategy = FedMITR(model, **budget, **settings)
    strategy.settle_seconds = strategy.poll_seconds = 0.0
    return strategy


@pytest.fixture
def example(monkeypatch):
    """Import a module of the example project, and forget it afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setattr(strategies, "FedMITR", small_fedmitr)
    yield lambda name: importlib.import_module(f"plugin_example.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugin_example"]:
        del sys.modules[name]


def settings(**changes):
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    return {**project["tool"]["flwr"]["app"]["config"], "local-epochs": 2, **changes}


def serve(example, server, capsys, **changes):
    """Run one of the example's servers against its own clients; return its accuracies."""
    client = example("client_app").app
    run_config = settings(**changes)

    def answer(message: Message) -> Message:
        node = {"partition-id": message.metadata.dst_node_id - 11, "num-partitions": len(NODES)}
        return client(message, context(run_config, node))

    grid = FakeGrid(NODES, answer)
    grid.turns = dict.fromkeys(NODES, 0)
    example(server).app(grid, context(run_config))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round")]
    return [float(line.rpartition(" ")[2]) for line in lines]


def test_one_line_makes_the_difference():
    before, after = (
        (EXAMPLE / "plugin_example" / name).read_text().splitlines()
        for name in ("server_app.py", "server_app_fedmitr.py")
    )
    changed = [line for line in difflib.ndiff(before, after) if line.startswith(("-", "+"))]
    assert changed == ["-     strategy = FedAvg()", "+     strategy = FedMITR(model)"]
    client = (EXAMPLE / "plugin_example" / "client_app.py").read_text()
    assert "fedmitr" not in client + (EXAMPLE / "plugin_example" / "task.py").read_text()


@pytest.mark.parametrize("name", ["server_app", "server_app_fedmitr"])
def test_both_versions_run_and_make_another_model(example, name, capsys, monkeypatch):
    server, states = example(name), []
    measure = server.evaluate

    def keep_state(server_round, arrays):
        states.append(arrays.to_torch_state_dict())
        return measure(server_round, arrays)

    monkeypatch.setattr(server, "evaluate", keep_state)
    assert len(serve(example, name, capsys)) == 2
    theta0, made = states
    assert made.keys() == theta0.keys()
    assert all(value.isfinite().all() for value in made.values())
    assert not any(torch.equal(made[key], theta0[key]) for key in ("pos_embed", "head.weight"))


def test_more_rounds_are_refused(example, capsys):
    with pytest.raises(Exception, match="num_rounds = 2 is not allowed"):
        serve(example, "server_app_fedmitr", capsys, **{"num-server-rounds": 2})


def test_the_example_calls_fedmitr_with_what_it_takes():
    assert next(iter(inspect.signature(FedMITR).parameters)) == "model"
