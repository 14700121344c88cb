"""The real ServerApp and ClientApp on a fake Grid: a whole run in this process."""

import html
import json
import logging
import random
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array
from flwr.serverapp.exception import AggregationError
from safetensors.torch import load_file

from fedmitr_app import run
from fedmitr_app.config import flatten, parse_config
from fedmitr_app.errors import ConfigError, DataError, FedmitrError, RunFolderError
from fedmitr_app.methods import MethodResult
from fedmitr_app.partitions import label_matrix
from fedmitr_app.report.verdict import reproduce_command
from fedmitr_app.results.write import report_data
from tests.helpers.fake_grid import failure
from tests.helpers.federation import Federation

pytestmark = pytest.mark.usefixtures("no_processes")


def steady(metrics: dict[str, Any]) -> dict[str, Any]:
    """What must not vary by itself."""
    return {key: value for key, value in metrics.items() if key not in ("seconds", "throughput")}


def test_a_run_leaves_everything_behind(federation, caplog):
    caplog.set_level(logging.INFO, logger="fedmitr_app")
    metrics = federation.run()
    folder = federation.folder
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "clients.csv",
        "config.json",
        "ensemble.safetensors",
        "environment.json",
        "figures",
        "global_model.json",
        "global_model.safetensors",
        "metrics.json",
        "metrics.jsonl",
        "pool",
        "report.html",
        "round.json",
        "status.json",
        "uploads",
    ]
    assert len(list((folder / "pool").glob("pool-*.safetensors"))) == 2
    assert len(list((folder / "figures").glob("*.png"))) == 7
    assert federation.status()["state"] == "completed"
    measured = federation.measured()
    stages = [line["stage"] for line in measured]
    # In the order they happened: six iterations of two batches, four steps of two students.
    assert list(dict.fromkeys(stages)) == [
        "training",
        "inversion",
        "distillation",
        "control",
        "evaluation",
    ]
    assert [stages.count(stage) for stage in dict.fromkeys(stages)] == [3, 12, 4, 4, 1]
    points = [line for line in measured if line["stage"] == "inversion"]
    assert [(point["batch"], point["iteration"]) for point in points] == [
        (batch, iteration) for batch in range(2) for iteration in range(6)
    ]
    assert all(0 < point["confidence"] < 1 and point["loss"] > 0 for point in points)
    steps = [line for line in measured if line["stage"] in ("distillation", "control")]
    assert [step["step"] for step in steps] == [0, 1, 2, 3] * 2
    assert steps[3]["loss"] == pytest.approx(metrics["distillation"]["loss"])
    assert all(step["loss"] > 0 for step in steps)
    config = json.loads((folder / "config.json").read_text())
    assert config == flatten(parse_config(federation.given()))

    # What is asked of metrics.json by name.
    assert metrics["seed"] == 0 and metrics["test_images"] == 60
    accuracy = metrics["accuracy"]
    assert set(accuracy) == {"student", "teacher", "fedavg", "control", "clients"}
    assert set(accuracy["clients"]) == {"client-000", "client-001", "client-002"}
    shares = [accuracy[name] for name in ("student", "teacher", "fedavg", "control")]
    for share in [*shares, *accuracy["clients"].values()]:
        assert 0.0 <= share <= 1.0
    assert metrics["inversion"]["images"] == 16
    assert 0.0 < metrics["inversion"]["flop_ratio"] < 1.0
    assert metrics["inversion"]["diversity"] > 0.0
    assert metrics["uploads"]["accepted"] == 3 and metrics["uploads"]["rejected"] == 0
    seconds = metrics["seconds"]
    assert set(seconds) == {"training", "inversion", "distillation", "control", "total"}
    assert all(value > 0.0 for value in seconds.values())
    assert seconds["total"] >= seconds["training"] + seconds["inversion"]

    # The folder is logged first and last, with the table before.
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("fedmitr_app")]
    for line in ("teacher: ensemble of 3 models, combined by prior-probed", "inversion: 16 images"):
        assert f"== {line} ==" in lines
    # Every model reads every image: three clients, and four made of them.
    scored = f"evaluation of 6 models on the test set: {6 * metrics['test_images']} images in "
    diverse = "diversity of the images: 48 images in "
    for counted in (scored, "measuring the clients' class priors: ", diverse):
        assert any(line.startswith(counted) for line in lines), counted
    assert lines[0] == lines[-2] == f"run folder: {folder}"
    given = len(federation.given()) - 1  # all but the preset itself
    told = f"settings: preset 'quick', {given} changed; all are in the run folder's config.json"
    assert lines[1] == told
    assert lines[2].startswith("server: device cpu, 1 thread")
    assert sum("server: device" in line for line in lines) == 1
    assert lines[-1] == f"report: {folder / 'report.html'}"
    table = "\n".join(lines[-16:])
    for words in ("client-002", "student (global model)", "teacher (ensemble)", "best single"):
        assert words in table
    page = (folder / "report.html").read_text()
    assert "preset=&#x27;quick&#x27;" in page and "num-supernodes=3" in page

    # What was read, on the server, on each client and in the report.
    read = metrics["data_read"]
    assert read.startswith(
        "data.source = 'sklearn-digits': 1797 images of 10 classes (the smallest class, '8', has "
        "174), 120 of 1438"
    )
    assert lines.count(f"data: {read}") == 1 and html.escape(read) in page.replace("\u00a0", " ")
    for client in range(3):
        told = f"client client-{client:03d}: device cpu, 1 thread, "
        assert any(line.startswith(told) and line.endswith(" classes") for line in lines)


def test_the_saved_model_is_the_student_that_was_measured(federation):
    metrics = federation.run()
    config = parse_config(federation.given())
    setting = run.prepare(config, torch.device("cpu"))
    start = setting.model.vit.state_dict()
    saved = load_file(federation.folder / "global_model.safetensors")
    assert any(not torch.equal(start[name], saved[name]) for name in start)
    setting.model.vit.load_state_dict(saved)
    images = setting.model.spec.normalise(setting.test_set.images)
    with torch.no_grad():
        hits = setting.model.eval()(images).logits.argmax(-1) == setting.test_set.labels
    assert metrics["accuracy"]["student"] == pytest.approx(hits.double().mean().item())


def test_the_servers_model_is_compiled_if_asked_for_and_where_that_works(federation, monkeypatch):
    config = parse_config(federation.given(**{"server.compile": True}))
    device = torch.device("cpu")
    monkeypatch.setattr(torch, "compile", lambda run: run)
    assert run.prepare(config, device).model.compiled
    monkeypatch.setattr(torch, "compile", None)
    with pytest.raises(ConfigError, match="server.compile = True is not allowed"):
        run.prepare(config, device)


def test_the_same_seed_gives_the_same_numbers_in_any_order_of_arrival(tmp_path):
    def shuffled(nodes):
        return random.Random(3).sample(nodes, len(nodes))

    changes = {"server.federated-evaluation": True}
    first = Federation(tmp_path / "a").run(**changes)
    assert steady(Federation(tmp_path / "b").run(**changes)) == steady(first)
    assert steady(Federation(tmp_path / "c", order=shuffled).run(**changes)) == steady(first)
    assert "accuracy-on-training-shard" in first["federated_evaluation"]
    weights = [(tmp_path / name / "global_model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] == weights[2]
    other = Federation(tmp_path / "d").run(seed=1, **changes)
    assert steady(other) != steady(first)


def test_fedavg_is_its_own_student_and_inverts_nothing(federation):
    metrics = federation.run(**{"server.method": "fedavg"})
    accuracy = metrics["accuracy"]
    assert accuracy["student"] == accuracy["fedavg"] and accuracy["control"] is None
    assert "inversion" not in metrics and set(metrics["seconds"]) == {"training", "total"}
    assert not (federation.folder / "pool").exists()
    stages = [line["stage"] for line in federation.measured()]
    assert stages == ["training"] * 3 + ["evaluation"]


@pytest.mark.parametrize(
    "method",
    [
        "dense-inversion",
        "random-patches",
        "uninverted",
        "noise",
        "dense",
        "co-boosting",
        "fedavg-uniform",
        "best-client",
        "fedcgs",
        "afl",
    ],
)
def test_every_rival_makes_a_model_and_a_report(federation, method):
    changes = {"server.method": method, "generator.steps": 2}
    metrics = federation.run(**changes, **{"client.share-moments": method in ("fedcgs", "afl")})
    makes_images = method not in ("fedavg-uniform", "best-client", "fedcgs", "afl")
    assert ("inversion" in metrics) == makes_images == (federation.folder / "pool").exists()
    with_control = makes_images and method not in ("uninverted", "noise")
    assert (metrics["accuracy"]["control"] is not None) == with_control
    if method == "best-client":
        assert metrics["accuracy"]["student"] in metrics["accuracy"]["clients"].values()
    if makes_images:
        # Only an inversion that stops patches does less work than one that never does.
        predicted = metrics["inversion"]["flop_ratio"]
        assert 0 < predicted < 1 if method == "random-patches" else predicted in (None, 1.0)
    assert (federation.folder / "global_model.safetensors").exists()
    assert method in (federation.folder / "report.html").read_text()


def test_the_bare_ensemble_has_a_teacher_and_no_model(federation):
    metrics = federation.run(**{"server.method": "ensemble"})
    assert metrics["accuracy"]["student"] is None and metrics["accuracy"]["teacher"] > 0.0
    assert not (federation.folder / "global_model.safetensors").exists()
    assert (federation.folder / "report.html").exists()


def test_a_server_without_data_makes_the_same_model(tmp_path):
    names = ",".join(str(digit) for digit in range(10))
    blind = Federation(tmp_path / "blind")
    metrics = blind.run(**{"server.test-set": False, "server.classes": names})
    assert metrics["accuracy"] == {} and metrics["test_images"] == 0
    assert metrics["inversion"]["images"] == 16 and "control" not in metrics["seconds"]
    assert not (blind.folder / "figures" / "label_distribution.png").exists()
    seeing = Federation(tmp_path / "seeing")
    seeing.run(**{"server.control": False})
    files = [run.folder / "global_model.safetensors" for run in (blind, seeing)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert seeing.metrics()["accuracy"]["control"] is None


def test_the_control_is_another_student(federation):
    # Enough steps for the two students to differ on sixty images.
    settings = {"distillation.steps": 30, "inversion.learning-rate": 0.15, "client.epochs": 6}
    accuracy = federation.run(**settings)["accuracy"]
    assert accuracy["control"] != accuracy["student"]
    assert not list(federation.folder.glob("control-*"))


@pytest.mark.parametrize("kind", ["nan", "failed", "silent"])
def test_one_bad_client_costs_neither_the_round_nor_the_report(federation, kind):
    def spoil(number, message, reply):
        if number != 1:
            return reply
        if kind == "failed":
            return failure(message, "Traceback ...\nRuntimeError: no space left")
        if kind == "silent":
            return None
        arrays = reply.content["arrays"]
        arrays["head.bias"] = Array(np.full(10, np.nan, np.float32))
        return reply

    federation.spoil = spoil
    metrics = federation.run(**{"server.timeout": 1.0 if kind == "silent" else 60.0})
    assert metrics["uploads"] == {
        "asked": 3,
        "accepted": 2,
        "rejected": int(kind != "silent"),
        "no_data": 0,
        "missing": int(kind == "silent"),
        "excluded": 0,
    }
    assert set(metrics["accuracy"]["clients"]) == {"client-000", "client-002"}
    page = (federation.folder / "report.html").read_text()
    assert "1 of 3 clients took no part" in page
    words = {"failed": "no space left", "nan": "head.bias", "silent": "no reply within 1 s"}
    assert words[kind] in page
    table = (federation.folder / "clients.csv").read_text()
    assert table.count("\n") == 4 and words[kind] in table


def test_too_few_uploads_fail_the_run(federation):
    federation.spoil = lambda number, message, reply: failure(message, "boom")
    with pytest.raises(AggregationError, match="Only 0 usable upload"):
        federation.run()
    status = federation.status()
    assert status["state"] == "failed" and "its ClientApp failed (boom)" in status["reason"]
    for name in ("metrics.json", "global_model.safetensors"):
        assert not (federation.folder / name).exists()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"inversion.typo": 1}, ConfigError, "inversion.typo is not a setting"),
        ({"server.method": "magic"}, ConfigError, "server.method = 'magic' is not allowed"),
        ({"client.epochs": 0}, ConfigError, "client.epochs = 0 is not allowed"),
        ({"inversion.views": 0}, ConfigError, "inversion.views = 0 is not allowed"),
        ({"model.weights": "nowhere.bin"}, FedmitrError, "model.weights = 'nowhere.bin'"),
        ({"server.test-set": False}, ConfigError, "server.classes = '' is not allowed"),
        ({"server.classes": "a,b"}, ConfigError, "server.classes = 'a,b' is not allowed"),
        ({"server.classes": "a,a"}, ConfigError, "names that all differ"),
        ({"server.classes": 'a,"b'}, ConfigError, 'in "double quotes" where they hold one'),
        ({"server.device": "cuda:99"}, ConfigError, "server.device = 'cuda:99' is not allowed"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_happens(federation, changes, error, words):
    with pytest.raises(error, match=words) as raised:
        federation.run(**changes)
    assert "\n" not in str(raised.value)
    assert not federation.grid.pushed and not federation.folder.exists()


def test_more_clients_than_samples_are_refused_before_training(federation):
    federation.clients = 130
    with pytest.raises((ConfigError, DataError), match="130"):
        federation.run()
    assert not federation.grid.pushed and federation.status()["state"] == "failed"


def test_another_runs_folder_is_never_touched(federation):
    federation.run(**{"server.method": "fedavg"})
    before = federation.metrics()
    with pytest.raises(RunFolderError, match="already holds another run"):
        federation.run()
    assert federation.metrics() == before and federation.status()["state"] == "completed"


def test_a_fusion_that_diverges_says_which_setting(federation):
    with pytest.raises(FedmitrError, match="distillation.learning-rate = 1e[+]30 made"):
        federation.run(**{"distillation.learning-rate": 1e30, "distillation.steps": 30})
    assert federation.status()["state"] == "failed"
    # Where it went wrong can be read.
    losses = [line["loss"] for line in federation.measured() if line["stage"] == "distillation"]
    assert 4 <= len(losses) < 30 and losses[0] > 0 and losses[-1] is None
    # The sentence is on disk, too.
    assert "distillation.learning-rate = 1e+30 made" in federation.status()["reason"]


def test_a_foreseen_error_is_a_sentence_in_flowers_own_log(federation):
    shown: list[str] = []
    handler = logging.Handler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.emit = lambda record: shown.append(handler.format(record))
    flower = logging.getLogger("flwr")
    flower.addHandler(handler)
    try:
        with pytest.raises(ConfigError) as raised:
            federation.run(**{"server.method": "magic"})
        flower.error("ServerApp raised an exception", exc_info=raised.value)
        flower.error("surprise", exc_info=ValueError("no sentence of ours"))
    finally:
        flower.removeHandler(handler)
    assert f"ServerApp raised an exception: {raised.value}" in shown
    assert any("no sentence of ours" in line for line in shown)


def test_a_given_value_that_equals_the_default_wins_on_the_server_and_on_clients(federation):
    # The preset says 15 epochs and 0.5.
    given = {"server.method": "fedavg", "client.epochs": 20, "partition.alpha": 0.1}
    federation.run(**given)
    config = json.loads((federation.folder / "config.json").read_text())
    assert config["client.epochs"] == 20 and config["partition.alpha"] == 0.1
    trained = [line["metrics"] for line in federation.measured() if line["stage"] == "training"]
    assert [each["epochs"] for each in trained] == [20, 20, 20]
    asked = parse_config(federation.given(**given))
    dealt = label_matrix(asked.data, asked.partition, 3, asked.seed).sum(1).tolist()
    uploads = sorted((federation.folder / "uploads").glob("*.json"))
    assert [json.loads(path.read_text())["num_examples"] for path in uploads] == dealt
    for message in federation.grid.sent:
        assert "client.epochs" in message.content["config"]["given-settings"]


def test_the_command_to_reproduce_names_the_preset_and_what_was_changed(federation):
    config = parse_config({"preset": "quick", "seed": 2, "partition.alpha": 0.7})
    command = reproduce_command(report_data(_NoResults(), [], {}, config, {}))
    assert command.endswith(
        "flwr run . --stream --run-config \"seed=2 preset='quick' partition.alpha=0.7\" "
        '--federation-config "num-supernodes=4"'
    )


class _NoResults:
    """As much of Results as the command needs."""

    fused, schedule, pool = MethodResult(None), None, None
    labels: dict[str, list[int]] = {}
    simulated = True
    class_names: tuple[str, ...] = ()
    test_images = 0

    class outcome:
        asked = 4
