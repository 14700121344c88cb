"""What nodes say of the global model: known names, shares, and counts that decide nothing alone."""

import math
import random

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedmitr_app.evaluation import HELD_OUT, TRAINED_ON, FederatedScore
from tests.helpers.averaging import AveragingRound
from tests.helpers.fake_grid import FakeGrid, failure, record, reply, theta0
from tests.helpers.rounds import QUICK, keyed

OURS = {"evaluation_metrics": (HELD_OUT, TRAINED_ON), "federated_evaluation": True}


def scored(said, order=list, **settings):
    """Do a round in which node 11 + i says ``said[i]`` of the model; return the strategy."""

    def answer(message):
        if message.metadata.message_type == "train":
            return keyed(message)
        what = said[message.metadata.dst_node_id - 11]
        if what is None or isinstance(what, Exception):
            return what
        if isinstance(what, str):
            return failure(message, what)
        content = what if isinstance(what, RecordDict) else told(**what)
        return [reply(message, content)] * 2  # a repetition counts once

    strategy = AveragingRound(**{**QUICK, **OURS, **settings})
    nodes = range(11, 11 + len(said))
    grid = FakeGrid(nodes, answer, order)
    grid.turns = dict.fromkeys(nodes, 0)
    result = strategy.start(grid, record(theta0()), timeout=1.0)
    means = dict(result.evaluate_metrics_clientapp.get(1, {}))
    assert means == {name: score.value for name, score in strategy.scores.items()}
    return strategy


def told(share=0.5, examples=10, name=HELD_OUT, **more):
    return RecordDict({"metrics": MetricRecord({name: share, "num-examples": examples, **more})})


def test_the_mean_is_by_images_and_says_what_it_rests_on():
    strategy = scored([{"share": 0.5, "examples": 10}, {"share": 0.8, "examples": 20}])
    assert strategy.scores == {HELD_OUT: FederatedScore(pytest.approx(0.7), 2, 30)}


def test_hold_outs_and_training_images_are_never_mixed():
    strategy = scored([{"share": 0.5}, {"share": 1.0, "name": TRAINED_ON}, {"share": 0.7}])
    assert strategy.scores == {
        HELD_OUT: FederatedScore(pytest.approx(0.6), 2, 20),
        TRAINED_ON: FederatedScore(1.0, 1, 10),
    }


@pytest.mark.parametrize("share", [-0.1, 1.1, 1e30, math.nan, math.inf, [0.5, 0.5]])
def test_what_is_no_share_is_left_out_by_name(share, caplog):
    strategy = scored([{"share": 0.5}, {"share": share}, {"share": 0.7}])
    assert strategy.scores[HELD_OUT] == FederatedScore(pytest.approx(0.6), 2, 20)
    assert f"The evaluation of node-12 is left out: {HELD_OUT} = " in caplog.text


def test_names_that_nobody_knows_are_left_out(caplog):
    strategy = scored([{"share": 0.5, "f1": 1.0}, {"share": 0.9, "name": "accuracy\nERROR"}])
    assert strategy.scores == {HELD_OUT: FederatedScore(0.5, 1, 10)}
    assert "node-12 is left out: it has none of accuracy-on-hold-out, accuracy-on-" in caplog.text
    assert not any("\n" in each.getMessage() for each in caplog.records if "left" in each.message)


def test_nobody_counts_for_more_than_three_times_the_median_node():
    honest = [{"share": 0.5}] * 4
    strategy = scored([*honest, {"share": 1.0, "examples": 900}])
    assert strategy.scores[HELD_OUT].value == pytest.approx((4 * 10 * 0.5 + 30) / 70)


@pytest.mark.parametrize("examples", [0, -5, math.nan, 10**9])
def test_a_count_that_cannot_be_right_makes_all_count_alike(examples, caplog):
    said = [{"share": 0.3}, {"share": 0.6, "examples": 30}, {"share": 0.9, "examples": examples}]
    strategy = scored(said)
    assert strategy.scores[HELD_OUT] == FederatedScore(pytest.approx(0.6), 3, None)
    assert "all nodes count alike: the number of examples of node-13 can't be right" in caplog.text


def test_what_is_no_evaluation_costs_nobody_elses(caplog):
    caplog.set_level("INFO", logger="fedmitr_app")
    no_data = RecordDict({"upload": ConfigRecord({"status": "no-data"})})
    wrong = RecordDict({"upload": ConfigRecord({"status": "error", "reason": "no\nimages"})})
    said = ["Traceback\nboom", no_data, wrong, RecordDict(), None, ValueError("x"), {"share": 0.4}]
    strategy = scored(said)
    assert strategy.scores == {HELD_OUT: FederatedScore(0.4, 1, 10)}
    for words in (
        "node-11 is left out: its ClientApp failed (boom).",
        "node-12 holds no data to evaluate on.",
        "node-13 is left out: no images",
        "node-14 is left out: it has 0 records of metrics",
        "No evaluation came in time (server.timeout) from node-15.",
    ):
        assert words in caplog.text


def test_a_project_of_ones_own_may_measure_what_it_likes():
    said = [{"share": 2.5, "name": "eval-loss", "f1": 0.5}, {"share": 3.5, "name": "eval-loss"}]
    strategy = scored(said, evaluation_metrics=None)
    assert {name: score.value for name, score in strategy.scores.items()} == {
        "eval-loss": 3.0,
        "f1": 0.5,
    }


def test_the_order_of_arrival_changes_nothing():
    said = [{"share": 0.1 * number, "examples": 7 * number} for number in range(1, 8)]

    def shuffled(nodes):
        return random.Random(5).sample(nodes, len(nodes))

    assert scored(said).scores == scored(said, order=shuffled).scores
