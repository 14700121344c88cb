"""Federations at the edge: they end in a model and a report all the same."""

import numpy as np
import pytest
import torch
from flwr.app import Array
from flwr.serverapp.exception import AggregationError

from fedmitr_app.errors import UploadError
from tests.helpers.federation import Federation


def test_a_single_client_is_plain_data_free_distillation(tmp_path, no_processes):
    metrics = Federation(tmp_path / "run", clients=1).run(**{"teacher.defence": "leave-one-out"})
    assert metrics["uploads"]["accepted"] == 1
    accuracy = metrics["accuracy"]
    # Its ensemble is itself.
    assert accuracy["teacher"] == pytest.approx(accuracy["clients"]["client-000"], abs=0.2)
    assert accuracy["student"] is not None


def test_shards_of_one_image_and_classes_that_nobody_holds(federation):
    metrics = federation.run(**{"partition.kind": "iid", "data.max-train": 4})
    assert metrics["uploads"]["accepted"] == 3
    table = (federation.folder / "clients.csv").read_text().splitlines()
    sizes = sorted(int(line.split(",")[1]) for line in table[1:])
    assert sizes[0] == 1 and sum(sizes) <= 4  # four images hold at most four of ten classes
    assert metrics["accuracy"]["student"] is not None


def test_shards_of_one_class(federation):
    metrics = federation.run(
        **{"partition.kind": "pathological", "partition.classes-per-client": 1}
    )
    assert metrics["uploads"]["accepted"] == 3


def test_clients_that_are_all_alike_count_once(federation):
    first = {}

    def alike(number, message, reply):
        arrays = reply.content["arrays"]
        for name, array in arrays.items():
            value = first.setdefault(name, array.numpy())
            noise = 1e-6 * number if value.dtype.kind == "f" else 0
            arrays[name] = Array(value + value.dtype.type(noise))
        return reply

    federation.spoil = alike
    metrics = federation.run()
    assert metrics["uploads"]["accepted"] == 3
    assert metrics["accuracy"]["student"] is not None
    first, *others = (federation.folder / "clients.csv").read_text().splitlines()[1:]
    assert "suspicious" in first and "they did not train apart" in first
    assert all("left out" in row and "is that of 'client-000'" in row for row in others)


@pytest.mark.parametrize("factor", [1e9, 1e37])
def test_weights_beyond_all_measure_are_left_out_whatever_the_defence(federation, factor):
    def loud(number, message, reply):
        if number == 1:
            arrays = reply.content["arrays"]
            arrays["head.weight"] = Array(arrays["head.weight"].numpy() * np.float32(factor))
        return reply

    federation.spoil = loud
    metrics = federation.run()
    assert (federation.folder / "global_model.safetensors").exists()
    assert metrics["uploads"]["accepted"] == 3
    table = (federation.folder / "clients.csv").read_text().splitlines()
    (line,) = [line for line in table if line.startswith("client-001")]
    assert "left out" in line and "times the median client's" in line


def test_too_few_that_can_be_trusted_is_a_sentence(federation):
    def broken(number, message, reply):
        arrays = reply.content["arrays"]
        huge = np.full_like(arrays["head.weight"].numpy(), 3e38)
        if number:
            arrays["head.weight"] = Array(huge)
        return reply

    federation.spoil = broken
    words = r"Only 1 trusted upload\(s\) where at least 2 \(server.min-clients\) .*client-001: its "
    with pytest.raises(AggregationError, match=words):
        federation.run(**{"server.min-clients": 2})
    assert federation.status()["state"] == "failed"


def test_no_upload_of_any_use_is_a_sentence(federation):
    def broken(number, message, reply):
        arrays = reply.content["arrays"]
        arrays["head.weight"] = Array(np.full_like(arrays["head.weight"].numpy(), 3e38))
        return reply

    federation.spoil = broken
    with pytest.raises(UploadError, match="No upload is of any use: its answers are not finite"):
        federation.run()
    assert "No upload is of any use" in federation.status()["reason"]


def test_weights_that_overflow_inside_the_model_are_left_out(federation, caplog):
    def huge(number, message, reply):
        if number == 1:
            arrays = reply.content["arrays"]
            head = torch.full((10, 16), 3e38).numpy()
            shape = tuple(arrays["head.weight"].shape)
            arrays["head.weight"] = Array(head[:, : shape[1]].repeat(shape[1] // 16 or 1, axis=1))
        return reply

    federation.spoil = huge
    metrics = federation.run()
    assert metrics["uploads"]["accepted"] == 3
    table = (federation.folder / "clients.csv").read_text().splitlines()
    (line,) = [line for line in table if line.startswith("client-001")]
    assert "left out" in line and "not finite" in line
    assert "client-001 is suspicious, and left out" in caplog.text


@pytest.mark.parametrize("method", ["fedavg", "fedavg-uniform"])
def test_an_upload_in_no_average_took_no_part_in_one(federation, caplog, method):
    def spike(number, message, reply):
        if number == 1:
            arrays = reply.content["arrays"]
            value = arrays["pos_embed"].numpy().copy()
            value.flat[0] = 1e18
            arrays["pos_embed"] = Array(value)
        return reply

    federation.spoil = spike
    metrics = federation.run(**{"server.method": method})
    assert metrics["accuracy"]["student"] is not None
    table = (federation.folder / "clients.csv").read_text().splitlines()
    (line,) = [line for line in table if line.startswith("client-001")]
    assert "left out" in line and "pos_embed" in line
    page = (federation.folder / "report.html").read_text()
    assert "one upload from each of 2 clients" in page and "1 of 3 clients took no part" in page
    assert "suspicious" not in page
    if method == "fedavg":  # said when it is averaged, and not again of a teacher without a say
        (said,) = [line for line in caplog.messages if "suspicious" in line]
        assert said.startswith("client-001 is suspicious: ") and "no average of weights" in said


def test_an_average_stands_without_an_ensemble_to_compare_it_with(federation, caplog):
    """Finite weights whose answers aren't: the average exists, and the round is over."""

    def broken(number, message, reply):
        arrays = reply.content["arrays"]
        # Of both signs, and not each other's copies.
        signs = np.where(np.arange(arrays["head.weight"].numpy().size) % (number + 2), 1, -1)
        huge = (3e38 * signs).astype(np.float32).reshape(arrays["head.weight"].numpy().shape)
        arrays["head.weight"] = Array(huge)
        return reply

    federation.spoil = broken
    metrics = federation.run(**{"server.method": "fedavg"})
    assert (federation.folder / "global_model.safetensors").exists()
    assert federation.status()["state"] == "completed"
    assert metrics["accuracy"]["teacher"] is None and metrics["accuracy"]["student"] is not None
    assert "is compared with no ensemble: No upload is of any use: its answers" in caplog.text
