"""Federations at the edge: they end in a model and a report all the same."""

import pytest
import torch
from flwr.app import Array

from tests.federation import Federation


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


def test_clients_that_are_all_alike(federation):
    first = {}

    def alike(number, message, reply):
        arrays = reply.content["arrays"]
        for name, array in arrays.items():
            value = first.setdefault(name, array.numpy())
            noise = 1e-5 * number if value.dtype.kind == "f" else 0
            arrays[name] = Array(value + value.dtype.type(noise))
        return reply

    federation.spoil = alike
    metrics = federation.run(**{"teacher.defence": "leave-one-out"})
    assert metrics["uploads"]["accepted"] == 3
    assert "suspicious" not in (federation.folder / "clients.csv").read_text()


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
