"""The real ClientApp, called by a fake Grid."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message
from PIL import Image

from fedmitr_app.client_app import app
from fedmitr_app.config import default_run_config, given_settings, parse_config
from fedmitr_app.errors import ConfigError, DataError
from fedmitr_app.models import InputSpec, architecture_of, build_vit
from fedmitr_app.partitions import ImageSet, align_labels, hold_out, load_shard
from fedmitr_app.strategies.records import to_array_record
from fedmitr_app.training import class_moments, fit
from tests.helpers.averaging import AveragingRound
from tests.helpers.fake_grid import FakeGrid, context

CLIENTS = 3
QUICK = {"settle_seconds": 0.0, "poll_seconds": 0.0}


def run_config(**changes):
    settings = {
        "preset": "quick",
        "client.epochs": 1,
        "model.depth": 1,
        "data.max-train": 120,
        "client.device": "cpu",
    }
    return {**default_run_config(), **settings, **changes}


def theta0(raw):
    config = parse_config(given_settings(raw))
    data = config.data
    spec = InputSpec(data.image_size, data.channels, data.mean, data.std)
    return build_vit(config.model, spec, 10, config.seed)


def node_config(message):
    return {
        "partition-id": message.metadata.dst_node_id - 11,
        "num-partitions": CLIENTS,
    }


def play(raw, node_config=node_config, order=list, told=None, bias=None, **strategy):
    """Do a round; ``told`` goes with both messages, ``bias`` is the head's in θ₀."""
    model = theta0(raw)
    if bias is not None:
        model.vit.head.bias.data = bias
    strategy = AveragingRound(
        architecture=architecture_of(model),
        input_spec=model.spec,
        num_classes=10,
        **QUICK,
        **strategy,
    )

    def answer(message: Message) -> Message:
        return app(message, context(raw, node_config(message)))

    grid = FakeGrid(range(11, 11 + CLIENTS), answer, order)
    arrays = to_array_record(model.vit.state_dict())
    configs = {name: told and ConfigRecord(told) for name in ("train_config", "evaluate_config")}
    result = strategy.start(grid, arrays, timeout=60.0, **configs)
    return strategy, result


def test_clients_train_once_and_are_accepted(tmp_path):
    raw = run_config(**{"client.share-label-counts": True})
    strategy, result = play(raw, run_dir=tmp_path)
    uploads = strategy.outcome.accepted
    assert [upload.client for upload in uploads] == ["client-000", "client-001", "client-002"]
    config = parse_config(given_settings(raw))
    for number, upload in enumerate(uploads):
        shard = load_shard(config.data, config.partition, number, CLIENTS, config.seed)
        assert upload.num_examples == len(shard)
        assert upload.label_counts == shard.label_counts()
        assert {"train-loss", "train-accuracy", "seconds", "steps", "epochs"} <= set(upload.metrics)
    model = theta0(raw)
    before = {name: value.clone() for name, value in model.vit.state_dict().items()}
    model.vit.load_state_dict(result.arrays.to_torch_state_dict())
    assert not torch.equal(before["head.weight"], model.vit.head.weight)


def test_class_moments_travel_if_a_client_shares_them(tmp_path):
    raw = run_config(**{"client.share-moments": True})
    strategy, result = play(raw, run_dir=tmp_path)
    config = parse_config(given_settings(raw))
    for number, upload in enumerate(strategy.outcome.accepted):
        shard = load_shard(config.data, config.partition, number, CLIENTS, config.seed)
        # Of θ₀'s features, not of the trained model's, which would not add up.
        own = class_moments(theta0(raw), shard, device="cpu").arrays()
        for name, value in upload.load_moments().arrays().items():
            assert np.allclose(value, own[name], rtol=1e-5)
        # They are part of the moments.
        assert upload.label_counts == shard.label_counts()
    plain, _ = play(run_config(), run_dir=tmp_path / "plain")
    pairs = zip(strategy.outcome.accepted, plain.outcome.accepted, strict=True)
    assert all(one.digest == other.digest for one, other in pairs)


def test_moments_that_no_images_have_are_left_out(tmp_path, monkeypatch, caplog):
    def lie(model, shard, **_):
        honest = class_moments(model, shard, device="cpu")
        return dataclasses.replace(honest, scatter=-honest.scatter)

    monkeypatch.setattr("fedmitr_app.client_app.class_moments", lie)
    strategy, _ = play(run_config(**{"client.share-moments": True}), run_dir=tmp_path)
    assert not any(upload.moments for upload in strategy.outcome.accepted)
    assert len(strategy.outcome.accepted) == CLIENTS and not strategy.outcome.rejected
    assert caplog.text.count("a scatter that no images can have") == CLIENTS


def test_what_data_clients_hold_stays_private_by_default(tmp_path):
    strategy, _ = play(run_config(), run_dir=tmp_path)
    for upload in strategy.outcome.accepted:
        assert upload.label_counts is None and not upload.moments
        assert "label" not in json.dumps({**upload.architecture, **upload.metrics})


def test_same_seed_gives_the_same_bits_in_any_order_and_another_seed_others():
    def bits(order, seed):
        _, result = play(run_config(seed=seed), order=order)
        return {name: array.data for name, array in result.arrays.items()}

    def shuffled(nodes):
        return random.Random(1).sample(nodes, len(nodes))

    first = bits(list, 0)
    assert bits(shuffled, 0) == first
    assert bits(list, 1) != first


def test_homes_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    strategy, _ = play(run_config(), run_dir="~/first")
    assert len(list((tmp_path / "first" / "uploads").glob("*.safetensors"))) == CLIENTS
    again, _ = play(run_config(), uploads_from="~/first")
    digests = [[upload.digest for upload in play.outcome.accepted] for play in (strategy, again)]
    assert digests[0] == digests[1]
    for setting in ("run_dir", "uploads_from"):
        with pytest.raises(ConfigError, match="'~nobody-here/x' names a user's home"):
            play(run_config(), **{setting: "~nobody-here/x"})


def test_an_empty_shard_is_an_explicit_reply(monkeypatch):
    def some_empty(data, partition, partition_id, num_partitions, seed):
        shard = load_shard(data, partition, partition_id, num_partitions, seed)
        keep = slice(0, 0) if partition_id == 1 else slice(None)
        return ImageSet(shard.images[keep], shard.labels[keep], shard.class_names)

    monkeypatch.setattr("fedmitr_app.client_app.load_shard", some_empty)
    strategy, _ = play(run_config(), federated_evaluation=True)
    assert [each.client for each in strategy.outcome.no_data] == ["client-001"]
    assert len(strategy.outcome.accepted) == 2 and not strategy.outcome.rejected


def test_a_clients_mistake_reaches_the_server_as_one_sentence(caplog):
    def one_is_wrong(message):
        node = node_config(message)
        return {**node, "data-source": "parquet"} if node["partition-id"] == 1 else node

    strategy, _ = play(run_config(), one_is_wrong)
    (rejection,) = strategy.outcome.rejected
    assert rejection.client == "client-001"
    assert rejection.reason.startswith("the run's settings and its node config (data.source) don't")
    assert "data.path = '' is not allowed" in caplog.text


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({}, "This node has no images: its node config must name its own"),
        ({"client-key": "hospital-a"}, "This node has no images"),
        ({"client-key": "a", "partition-id": "x"}, "node-config partition-id must be"),
        ({"client-key": "a", "data-path": "/x"}, "data-path needs data-source = 'image-folder'"),
        ({"partition-id": 0, "num-partitions": 3, "model-dir": 5}, "model-dir is no folder"),
        ({"partition-id": 0}, "node-config num-partitions must be"),
        ({"partition-id": "0", "num-partitions": 2}, "partition-id must be a whole"),
        ({"partition-id": 5, "num-partitions": 2}, "partition-id = 5"),
    ],
)
def test_impossible_node_configs_are_told(node, words):
    with pytest.raises(Exception, match=words):
        play(run_config(), lambda message: node)


def test_other_weights_than_the_clients_model_takes_are_told():
    def deeper(message):
        return app(message, context(run_config(**{"model.depth": 2}), node_config(message)))

    model = theta0(run_config())
    strategy = AveragingRound(**QUICK)
    grid = FakeGrid([11], deeper)
    with pytest.raises(Exception, match="The server's weights don't fit this client's model.name"):
        strategy.start(grid, to_array_record(model.vit.state_dict()), timeout=1.0)


def test_evaluation_is_named_for_what_it_is():
    model = theta0(run_config())
    strategy = AveragingRound(federated_evaluation=True, **QUICK)
    raw = run_config()
    grid = FakeGrid([11, 12, 13], lambda m: app(m, context(raw, node_config(m))))
    result = strategy.start(grid, to_array_record(model.vit.state_dict()), timeout=60.0)
    (name,) = result.evaluate_metrics_clientapp[1]
    assert name == "accuracy-on-training-shard"


def test_a_client_may_hold_images_out_and_score_the_global_model_on_them(monkeypatch):
    raw, scored, trained = run_config(**{"client.holdout": 0.25}), [], []

    def score(predict, images, *arguments, **keywords):
        scored.append(images)
        return 0.5

    def train(model, shard, *arguments, **keywords):
        trained.append(shard.images)
        return fit(model, shard, *arguments, **keywords)

    monkeypatch.setattr("fedmitr_app.client_app.accuracy", score)
    monkeypatch.setattr("fedmitr_app.client_app.fit", train)
    strategy = AveragingRound(federated_evaluation=True, **QUICK)
    grid = FakeGrid([11, 12, 13], lambda m: app(m, context(raw, node_config(m))))
    state = theta0(raw).vit.state_dict()
    result = strategy.start(grid, to_array_record(state), timeout=60.0)
    assert dict(result.evaluate_metrics_clientapp[1]) == {"accuracy-on-hold-out": 0.5}
    config = parse_config(given_settings(raw))
    for number, (rest, held) in enumerate(zip(trained, scored, strict=True)):
        shard = load_shard(config.data, config.partition, number, CLIENTS, config.seed)
        assert len(held) == round(0.25 * len(shard)) and len(rest) + len(held) == len(shard)
        both = torch.cat([rest, held]).flatten(1).tolist()
        assert sorted(both) == sorted(shard.images.flatten(1).tolist())
        assert strategy.outcome.accepted[number].num_examples == len(rest)


@pytest.mark.parametrize(("images", "held"), [(0, 0), (1, 0), (2, 1), (10, 9)])
def test_something_is_always_left_to_train_on(images, held):
    shard = ImageSet(torch.zeros(images, 1, 2, 2), torch.zeros(images, dtype=torch.long), ("a",))
    rest, out = hold_out(shard, 0.9, 0, "me")
    assert (len(rest), len(out)) == (images - held, held)


def test_a_node_may_bring_its_own_data(tmp_path):
    for name in ("seven", "three"):
        (tmp_path / name).mkdir()
        for number in range(5):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    raw = run_config()
    own = {"data-source": "image-folder", "data-path": str(tmp_path), "client-key": "hospital"}
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

    def one_owns(message):
        node = node_config(message)
        return own if node["partition-id"] == 0 else node

    strategy, _ = play(
        run_config(**{"client.share-label-counts": True}),
        lambda message: own,
        told={"class-names": names},
    )
    assert not strategy.outcome.rejected and strategy.outcome.repeated == 2
    (upload,) = strategy.outcome.accepted
    assert upload.client == "hospital"
    assert upload.num_examples == sum(upload.label_counts) > 4
    # Sorted alone, "seven" would be class 0: the server's numbering counts.
    assert [number for number, count in enumerate(upload.label_counts) if count] == [3, 7]
    # So it is in the evaluation: the model answers "seven", whatever it sees.
    seven = 1000.0 * torch.eye(10)[7]
    told = {"class-names": names}
    _, result = play(raw, lambda message: own, told=told, bias=seven, federated_evaluation=True)
    (share,) = result.evaluate_metrics_clientapp[1].values()
    assert share == 0.5
    mixed, _ = play(raw, one_owns)
    assert [upload.client for upload in mixed.outcome.accepted][-1] == "hospital"


def test_labels_are_aligned_by_name():
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    shard = ImageSet(images, torch.tensor([1, 0, 1]), ("a", "b"))
    aligned = align_labels(shard, ("b", "x", "a"))
    assert aligned.labels.tolist() == [0, 2, 0] and aligned.class_names == ("b", "x", "a")
    assert align_labels(shard, ("a", "b")) is shard
    with pytest.raises(DataError, match="images of b, which the server's model does not know"):
        align_labels(shard, ("a", "c"))
    empty = ImageSet(shard.images[:0], shard.labels[:0], ("b",))
    assert align_labels(empty, ("a",)).labels.tolist() == []
