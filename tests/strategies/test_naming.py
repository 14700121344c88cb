"""Nodes go by the names that they were registered under, where Flower knows them."""

import pytest
from flwr.proto.node_pb2 import NodeInfo

from fedmitr_app.strategies.naming import called, node_names
from tests.helpers.averaging import AveragingRound
from tests.helpers.fake_grid import FakeGrid, failure, record, theta0
from tests.helpers.rounds import QUICK, Outage, keyed

NAMES = {11: "hospital-a", 12: "hospital-b", 13: "hospital-c", 14: ""}


def named(grid, names=NAMES):
    """Let a grid know its nodes' names."""
    grid.get_nodes = lambda: [NodeInfo(node_id=node, name=names[node]) for node in grid.nodes]
    return grid


def answer(message):
    node = message.metadata.dst_node_id
    if message.metadata.message_type == "evaluate" or node == 12:
        return failure(message, "boom")
    return keyed(message) if node == 11 else None


def test_who_sent_nothing_usable_is_called_by_name(caplog):
    strategy = AveragingRound(federated_evaluation=True, **QUICK)
    grid = named(FakeGrid(NAMES, answer))
    grid.refuse = {14}
    grid.turns = dict.fromkeys(NAMES, 0)
    strategy.start(grid, record(theta0()), timeout=0.1)
    refused = [each.client for each in strategy.outcome.rejected]
    assert refused == ["hospital-b (node 12)", "node-14"]
    assert [each.client for each in strategy.outcome.missing] == ["hospital-c (node 13)"]
    assert "The evaluation of hospital-a (node 11) is left out: its ClientApp failed" in caplog.text


def test_who_is_out_of_reach_is_called_by_name(caplog):
    strategy = AveragingRound(absence=60.0, **QUICK)
    strategy.start(named(Outage([11, 12, 13], keyed)), record(theta0()), timeout=20.0)
    assert "hospital-b (node 12) is out of reach." in caplog.text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("hospital-a", "hospital-a (node 7)"),
        ("  St. Mary's\tPraha 2 ", "St. Mary's Praha 2 (node 7)"),
        ("a\n\x1b[31mERROR all is lost\u202e\r", "a ?[31mERROR all is lost? (node 7)"),
        ("x" * 1000, "x" * 59 + "… (node 7)"),
        ("", "node-7"),
        ("\n\x00", "? (node 7)"),
        ("\n\t ", "node-7"),
    ],
)
def test_names_are_one_short_printable_line(name, shown):
    assert called(7, name) == shown


def test_grids_that_know_no_names_work():
    class Failing(FakeGrid):
        def get_nodes(self):
            raise ConnectionError("500")

    class Odd(FakeGrid):
        def get_nodes(self):
            return [object()]

    for grid in (FakeGrid([11], keyed), Failing([11], keyed), Odd([11], keyed)):
        assert node_names(grid).get(11, "node-11") == "node-11"
        AveragingRound(**QUICK).start(grid, record(theta0()), timeout=1.0)
