"""Slow nodes: waited for, or left out once there are enough others."""

import numpy as np
import pytest
from PIL import Image

from fedmitr_app.client_app import read_client
from fedmitr_app.config import default_run_config
from fedmitr_app.errors import ConfigError
from fedmitr_app.partitions import load_shard
from fedmitr_app.strategies import OneShotFedAvg
from tests.strategies.fake_grid import LateGrid, context, record, theta0
from tests.strategies.test_one_shot import QUICK, keyed


def draw_class(folder, count):
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    ("patience", "accepted", "until"), [(0.0, 3, 1.0), (0.2, 2, 0.2), (5.0, 3, 1.0)]
)
def test_the_rest_is_waited_for_as_long_as_patience_says(clock, patience, accepted, until):
    strategy = OneShotFedAvg(min_clients=2, patience=patience, **QUICK)
    strategy.start(LateGrid(clock, keyed), record(theta0()), timeout=20.0)
    assert len(strategy.outcome.accepted) == accepted
    assert clock.now == pytest.approx(until, abs=0.02)
    if accepted == 2:
        (missing,) = strategy.outcome.missing
        assert missing.reason == "no reply 0.2 s after 2 upload(s) (server.patience)."


def test_patience_begins_when_there_are_enough(clock):
    strategy = OneShotFedAvg(min_clients=3, patience=0.1, **QUICK)
    strategy.start(LateGrid(clock, keyed), record(theta0()), timeout=20.0)
    assert len(strategy.outcome.accepted) == 3


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
