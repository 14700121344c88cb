"""The example project: one line between FedAvg and FedMITR, and both run."""

import difflib
import inspect

import pytest
import torch

from fedmitr_app.strategies import FedMITR
from tests.helpers.plug_in import EXAMPLE, modules_of, serve


@pytest.fixture
def example():
    with modules_of() as modules:
        yield modules


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
def test_both_versions_run_and_make_another_model(example, name, monkeypatch):
    server, states = example(name), []
    measure = server.evaluate

    def keep_state(server_round, arrays):
        states.append(arrays.to_torch_state_dict())
        return measure(server_round, arrays)

    monkeypatch.setattr(server, "evaluate", keep_state)
    assert len(serve(example, name)) == 2
    theta0, made = states
    assert made.keys() == theta0.keys()
    assert all(value.isfinite().all() for value in made.values())
    assert not any(torch.equal(made[key], theta0[key]) for key in ("pos_embed", "head.weight"))


def test_more_rounds_are_refused(example):
    with pytest.raises(Exception, match="num_rounds = 2 is not allowed"):
        serve(example, "server_app_fedmitr", **{"num-server-rounds": 2})


def test_the_example_calls_fedmitr_with_what_it_takes():
    assert next(iter(inspect.signature(FedMITR).parameters)) == "model"
