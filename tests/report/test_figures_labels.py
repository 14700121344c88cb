"""Which label counts a report shows: what was dealt, or what clients share."""

import json
import math
from dataclasses import replace

import pytest

from fedmitr_app.config import parse_config
from fedmitr_app.partitions import label_matrix
from fedmitr_app.results import write
from fedmitr_app.strategies import flower_run
from tests.helpers.fake_grid import failure
from tests.helpers.federation import CLIENTS


def test_a_label_figure_needs_uploads_that_agree(federation):
    def other_size(number, message, reply):
        reply.content["metrics"]["num-examples"] = 7 + number
        reply.content["metrics"]["stage"] = 1.0  # a name that the log of metrics uses itself
        return reply

    federation.spoil = other_size
    metrics = federation.run(**{"server.method": "fedavg"})
    assert not math.isnan(metrics["accuracy"]["student"])
    assert not (federation.folder / "figures" / "label_distribution.png").exists()


@pytest.fixture
def shown(monkeypatch):
    """The label counts that a run's report shows, by client key."""
    labels: dict[str, list[int]] = {}
    report = write.write_report

    def note(folder, data):
        labels.update(zip(data.label_matrix_clients, map(list, data.label_matrix), strict=True))
        return report(folder, data)

    monkeypatch.setattr(write, "write_report", note)
    return labels


def held(federation) -> dict[str, list[int]]:
    config = parse_config(federation.given())
    matrix = label_matrix(config.data, config.partition, CLIENTS, config.seed).tolist()
    return {f"client-{number:03d}": row for number, row in enumerate(matrix)}


AVERAGE = {"server.method": "fedavg", "client.epochs": 1}


def test_in_simulation_the_server_knows_what_it_dealt(federation, shown):
    federation.spoil = lambda number, message, reply: (
        failure(message, "boom") if number == 1 else reply
    )
    federation.run(**AVERAGE)
    assert shown == held(federation)


def test_in_a_deployment_only_what_clients_share_is_known(federation, shown, monkeypatch):
    def never(*args):
        raise AssertionError("the server deals its own data")

    def one_declines(number, message, reply):
        if number == 1:
            del reply.content["upload"]["label-counts"]
        return reply

    monkeypatch.setattr(flower_run, "label_matrix", never)
    federation.task_type = "flwr-serverapp"
    federation.run(**AVERAGE)
    assert shown == {}
    page = (federation.folder / "report.html").read_text()
    assert "num-supernodes" not in page and "3 nodes of a deployment" in page
    sharing = replace(federation, folder=federation.folder / "2", spoil=one_declines)
    sharing.run(**AVERAGE, **{"client.share-label-counts": True})
    expected = held(federation)
    del expected["client-001"]
    assert shown == expected
    assert "1 of 3 clients did not share theirs" in (sharing.folder / "report.html").read_text()


def test_clients_that_hold_something_else_than_was_dealt_are_believed(federation, shown):
    def other_labels(number, message, reply):
        upload = reply.content["upload"]
        upload["label-counts"] = json.dumps(json.loads(upload["label-counts"])[::-1])
        return reply

    federation.spoil = other_labels
    federation.run(**AVERAGE, **{"client.share-label-counts": True})
    assert shown == {client: row[::-1] for client, row in held(federation).items()}
