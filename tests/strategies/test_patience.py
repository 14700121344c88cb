"""Slow nodes: waited for, or left out once there are enough others."""

import numpy as np
import pytest
from flwr.app import MessageType, MetricRecord, RecordDict
from PIL import Image

from fedmitr_app.client_app import read_client
from fedmitr_app.config import default_run_config
from fedmitr_app.errors import ConfigError
from fedmitr_app.partitions import load_shard
from tests.helpers.averaging import AveragingRound
from tests.helpers.fake_grid import FakeGrid, LateGrid, context, record, reply, theta0
from tests.helpers.rounds import QUICK, keyed


def draw_class(folder, count):
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    ("patience", "accepted", "until"), [(0.0, 3, 1.0), (0.2, 2, 0.2), (5.0, 3, 1.0)]
)
def test_the_rest_is_waited_for_as_long_as_patience_says(clock, patience, accepted, until):
    strategy = AveragingRound(min_clients=2, patience=patience, **QUICK)
    strategy.start(LateGrid(clock, keyed), record(theta0()), timeout=20.0)
    assert len(strategy.outcome.accepted) == accepted
    assert clock.now == pytest.approx(until, abs=0.02)
    if accepted == 2:
        (missing,) = strategy.outcome.missing
        assert missing.reason == "no reply 0.2 s after 2 upload(s) (server.patience)."


def test_patience_begins_when_there_are_enough(clock):
    strategy = AveragingRound(min_clients=3, patience=0.1, **QUICK)
    strategy.start(LateGrid(clock, keyed), record(theta0()), timeout=20.0)
    assert len(strategy.outcome.accepted) == 3


class SlowScores(FakeGrid):
    """Nodes evaluate for seconds: the first answers after all patience, the last much later."""

    def __init__(self, clock):
        super().__init__([11, 12, 13], self.reply)
        self.clock, self.ready = clock, {11: 5.0, 12: 5.1, 13: 9.0}

    def reply(self, message):
        if message.metadata.message_type == MessageType.TRAIN:
            return keyed(message)
        return reply(message, RecordDict({"metrics": MetricRecord({"num-examples": 5, "a": 0.5})}))

    def pull_messages(self, message_ids):
        ids = [
            each
            for each in message_ids
            if (asked := self.pushed.get(each)) is None
            or asked.metadata.message_type == MessageType.TRAIN
            or self.clock.now >= self.ready[asked.metadata.dst_node_id]
        ]
        return super().pull_messages(ids) if ids else []


def test_patience_with_evaluations_begins_with_the_first(clock, caplog):
    strategy = AveragingRound(patience=0.2, federated_evaluation=True, **QUICK)
    strategy.start(SlowScores(clock), record(theta0()), timeout=20.0)
    assert strategy.scores["a"].nodes == 2
    assert clock.now == pytest.approx(5.2, abs=0.05)
    assert "No evaluation came in time (server.patience) from node-13." in caplog.text


@pytest.mark.parametrize("key", [" a", "a,b", "a#b", ""])
def test_a_key_that_cannot_be_is_said_before_the_training(key):
    node = {"data-path": "x", "data-source": "image-folder", "client-key": key}
    with pytest.raises(ConfigError, match="The node config's client-key = "):
        read_client(context(default_run_config(), node))


def test_a_nodes_own_images_are_all_for_training(tmp_path):
    for name, count in (("a", 1), ("b", 9)):
        draw_class(tmp_path / name, count)
    run_config = {**default_run_config(), "data.test-path": "/only/the/server/has/this"}
    node = {"data-path": str(tmp_path), "data-source": "image-folder", "client-key": "me"}
    config = read_client(context(run_config, node)).config
    shard = load_shard(config.data, config.partition, 0, 1, config.seed)
    assert shard.label_counts() == (1, 9)


def test_a_node_may_have_a_limit_of_its_own():
    run_config = {**default_run_config(), "client.device": "cpu", "client.max-seconds": 50.0}
    node = {"partition-id": 0, "num-partitions": 2}
    assert read_client(context(run_config, node)).config.client.max_seconds == 50.0
    hurried = read_client(context(run_config, {**node, "max-seconds": 7.5}))
    assert hurried.config.client.max_seconds == 7.5 and hurried.num_partitions == 2
