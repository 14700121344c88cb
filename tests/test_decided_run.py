"""'auto' is decided once a run, by the server: everybody follows, also whoever goes on with it."""

import json

import pytest
import torch
from flwr.app import ConfigRecord

from fedmitr_app.client_app import app as client_app
from fedmitr_app.diagnostics.finished import read_run
from fedmitr_app.errors import ConfigError
from fedmitr_app.experiments.auto_precision import with_auto_resolved
from fedmitr_app.experiments.cell import read_cell
from fedmitr_app.experiments.grid import read_grid
from fedmitr_app.experiments.run import run_grid
from fedmitr_app.models import PatchViT, auto_precision
from fedmitr_app.models.auto_precision import HALF, ONEDNN, PLAIN
from tests.helpers.fake_grid import context
from tests.helpers.resuming import RESUME, Stopped, fedmitr_module, stop_at

CPU = torch.device("cpu")
AUTO = {"model.precision": "auto", "model.matmul": "auto"}
FAST = {"bfloat16": HALF, "onednn": ONEDNN, "nothing": PLAIN}
CHOSEN = {"bfloat16": ("bfloat16", "torch"), "onednn": ("float32", "onednn")}


def let_it_be(monkeypatch, fast, calls=None):
    """Force a decision: ``fast`` is ten times as fast as the rest."""

    def seconds_of(model, device):
        if calls is not None:
            calls.append(fast)
        return {way: 0.1 if way == FAST[fast] else 1.0 for way in FAST.values()}

    monkeypatch.setattr(auto_precision, "seconds_of", seconds_of)


def note_passes(monkeypatch):
    """Note in which way each model's passes are worked out."""
    ways, plain = [], PatchViT.forward_patches

    def forward_patches(self, *arguments, **keywords):
        ways.append((self.precision, self.matmul))
        return plain(self, *arguments, **keywords)

    monkeypatch.setattr(PatchViT, "forward_patches", forward_patches)
    return ways


def written(federation):
    config = json.loads((federation.folder / "config.json").read_text())
    return tuple(config[key] for key in AUTO)


@pytest.mark.parametrize("fast", ["bfloat16", "onednn"])
def test_the_server_decides_once_and_clients_and_diagnosis_follow(federation, monkeypatch, fast):
    calls = []
    let_it_be(monkeypatch, fast, calls)
    ways = note_passes(monkeypatch)
    federation.run(**AUTO, **{"server.federated-evaluation": True})
    assert calls == [fast] and set(ways) == {CHOSEN[fast]}
    assert written(federation) == CHOSEN[fast]
    for message in federation.grid.sent:  # to train, and to evaluate
        assert tuple(message.content["config"][key] for key in AUTO) == CHOSEN[fast]
    let_it_be(monkeypatch, "nothing")
    model = read_run(federation.folder, "cpu", False).task.model
    assert (model.precision, model.matmul) == CHOSEN[fast]


def test_what_a_run_decided_holds_for_whoever_goes_on_with_it(federation, monkeypatch):
    let_it_be(monkeypatch, "bfloat16")
    with monkeypatch.context() as patched:
        stop_at(patched, fedmitr_module.StudentTraining, "finish")
        with pytest.raises(Stopped):
            federation.run(**AUTO)
    let_it_be(monkeypatch, "onednn")  # another machine, say
    ways = note_passes(monkeypatch)
    federation.run(**AUTO, **RESUME)
    assert written(federation) == CHOSEN["bfloat16"] and set(ways) == {CHOSEN["bfloat16"]}
    # Named outright it must be the same.
    with pytest.raises(ConfigError, match=r"model.precision = 'float32' \(was 'bfloat16'\)"):
        federation.run(**{"model.precision": "float32"}, **RESUME)


def test_a_client_that_is_told_nothing_or_nonsense_says_so(federation):
    federation.run(**{"server.method": "fedavg"})
    message = federation.grid.sent[0]
    node = {"partition-id": 0, "num-partitions": 3}
    for told, words in (
        ({"model.precision": "fp8"}, "model.precision = 'fp8' is not allowed"),
        ({}, "model.precision = 'auto' is decided by the run's server"),
    ):
        config = {**message.content["config"], **told}
        if not told:
            config = {key: value for key, value in config.items() if key not in AUTO}
        message.content["config"] = ConfigRecord(config)
        reply = client_app(message, context(federation.settings(**AUTO), node))
        assert words in reply.content["upload"]["reason"]


EXPERIMENT = """
[axes]
seeds = [0]
clients = [2]
[settings]
preset = "quick"
data.max-train = 80
data.max-test = 40
client.epochs = 1
model.depth = 1
model.precision = "auto"
model.matmul = "auto"
[rows.fedavg]
[rows.fixed]
method = "fedavg"
settings = { model.precision = "float32", model.matmul = "torch" }
"""


@pytest.mark.parametrize("fast", ["bfloat16", "onednn"])
def test_an_experiment_decides_once_and_its_results_say_what(tmp_path, monkeypatch, fast):
    path, results = tmp_path / "tiny.toml", tmp_path / "results"
    path.write_text(EXPERIMENT)
    grid, calls = read_grid(path), []
    let_it_be(monkeypatch, fast, calls)
    auto, fixed = run_grid(grid, results, device=CPU, log=lambda line: None)
    assert (auto["precision"], auto["matmul"]) == CHOSEN[fast]
    assert (fixed["precision"], fixed["matmul"]) == ("float32", "torch")
    assert calls == [fast] and auto["status"] == fixed["status"] == "ok"
    # Gone on with, also elsewhere, it is what it was: nothing is computed again.
    let_it_be(monkeypatch, "nothing", calls)
    again = with_auto_resolved(grid, results / "decided.json", CPU)
    assert calls == [fast]
    assert all(read_cell(cell, results, CPU) for cell in again.cells)
    (results / "decided.json").write_text("[")
    renewed = with_auto_resolved(grid, results / "decided.json", CPU)
    assert renewed.cells[0].config.model.precision == "float32" and len(calls) == 2
