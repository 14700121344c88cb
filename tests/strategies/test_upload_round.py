"""The round with a fake Grid: every way a reply can go wrong, in every order."""

import gc
import itertools
import json
import random
import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError

from fedmitr_app.errors import ConfigError, RunFolderError
from fedmitr_app.models import InputSpec
from fedmitr_app.strategies import UploadRound
from tests.helpers.averaging import AveragingRound
from tests.helpers.fake_grid import (
    FakeGrid,
    LateGrid,
    failure,
    good_content,
    record,
    reply,
    theta0,
)
from tests.helpers.rounds import QUICK, keyed, run


def test_a_round_averages_and_keeps_theta0s_order(tmp_path):
    strategy = AveragingRound(run_dir=tmp_path, **QUICK)
    result = run(strategy, keyed)
    state = result.arrays.to_torch_state_dict()
    assert list(state) == list(theta0())
    assert torch.equal(state["body.weight"], torch.full((2, 3), 2.0))
    assert state["scale"].shape == ()
    assert state["steps"].dtype == torch.int64 and state["steps"].tolist() == [3]
    assert [upload.client for upload in strategy.outcome.accepted] == [
        "client-a",
        "client-b",
        "client-c",
    ]
    assert strategy.outcome.asked == 3 and not strategy.outcome.rejected
    assert dict(result.train_metrics_clientapp[1]) == {"train-loss": 2.0, "uploads": 3}
    assert sorted(path.name for path in (tmp_path / "uploads").iterdir()) == [
        f"{upload.client}.{upload.digest[:16]}.{kind}"
        for upload in strategy.outcome.accepted
        for kind in ("json", "safetensors")
    ]


def test_more_than_one_round_is_refused_before_anything_is_sent():
    grid = FakeGrid([11], keyed)
    with pytest.raises(ConfigError, match="num_rounds = 3 is not allowed: it must be 1, because"):
        AveragingRound(**QUICK).start(grid, record(theta0()), num_rounds=3)
    assert not grid.pushed


@pytest.mark.parametrize("order", list(itertools.permutations([11, 12, 13])))
def test_the_order_of_arrival_changes_nothing(order):
    def answer(message):
        return reply(message, good_content(0.1 * message.metadata.dst_node_id))

    def bits(order):
        strategy = AveragingRound(**QUICK)
        result = run(strategy, answer, order=lambda nodes: list(order))
        clients = [upload.client for upload in strategy.outcome.accepted]
        return clients, {name: array.data for name, array in result.arrays.items()}

    assert bits(order) == bits([11, 12, 13])


def weight(array):
    """Put an array in the place of the first one."""

    def change(content):
        content["arrays"]["body.weight"] = array

    return change


def raw(dtype, data, kind="numpy.ndarray"):
    return weight(Array(dtype, (2, 3), kind, data))


def said(**words):
    """Change what the client says."""

    def change(content):
        content["upload"].update({name.replace("_", "-"): value for name, value in words.items()})

    return change


def renamed(content):
    arrays = content["arrays"]
    content["arrays"] = ArrayRecord({f"module.{name}": value for name, value in arrays.items()})


def of_spec(**changes):
    return said(input_spec=json.dumps(SPEC.to_dict() | changes))


SPEC = InputSpec(8, 1, (0.5,), (0.5,))
BODY = theta0()["body.weight"]
CHANGES = {
    "nan": weight(Array(np.full((2, 3), np.nan, np.float32))),
    "overflow": weight(Array(np.full((2, 3), 1e300))),
    "shape": weight(Array(BODY.T.copy())),
    "missing": lambda content: content["arrays"].pop("head.bias"),
    "extra": lambda content: content["arrays"].update({"secret": Array(BODY)}),
    "renamed": renamed,
    "integers": weight(Array(BODY.astype(np.int64))),
    "object dtype": raw("object", b"\x93NUMPY" + bytes(100)),
    "bfloat16": raw("bfloat16", bytes(12)),
    "huge payload": raw("float32", bytes(10_000)),
    "cut payload": raw("float32", Array(BODY).data[:-4]),
    "lying payload": raw("float32", Array(BODY.reshape(3, 2)).data),
    "not npy": raw("float32", bytes(128)),
    "other serialisation": raw("float32", Array(BODY).data, "pickle"),
    "no metrics": lambda content: content.pop("metrics"),
    "no arrays": lambda content: content.pop("arrays"),
    "bad key": said(client_key="a\nb"),
    "two keys": said(client_key="a,b"),
    "key of bytes": said(client_key=b"client"),
    "architecture": said(architecture=json.dumps({"depth": 7})),
    "input spec": of_spec(size=32),
    "normalisation": of_spec(std=[0.25]),
    "not JSON": said(architecture="[" * 19_000),
    "client's own error": said(status="error", reason="data.path = 'x' is not there."),
    "strange status": said(status="maybe"),
    "empty": lambda content: content.clear(),
}


def broken(kind):
    """A reply content with one thing wrong."""
    content = good_content(1.0, 10, "client-bad")
    CHANGES[kind](content)
    return content


BROKEN = {
    "nan": "6 of 6 values that are NaN",
    "overflow": "NaN or infinite",
    "shape": "(3, 2) where the server has (2, 3)",
    "missing": "1 missing (head.bias)",
    "extra": "1 unknown to the server (secret)",
    "renamed": "starts with 'module.'",
    "integers": "of type int64",
    "object dtype": "of type object",
    "bfloat16": "cast bfloat16",
    "huge payload": "payload has 10000",
    "cut payload": "bytes",
    "lying payload": "shape (3, 2)",
    "not npy": "not a readable npy",
    "other serialisation": "'pickle'",
    "no metrics": "0 records of metrics where one with 'num-examples' is needed",
    "no arrays": "0 records of arrays",
    "bad key": "client-key",
    "two keys": "client-key = 'a,b': it must be 1 to 200 printable characters without ','",
    "key of bytes": "client-key",
    "architecture": "depth is 7, not 2",
    "input spec": "size is 32, not 8",
    "normalisation": "std is [0.25], not [0.5]",
    "not JSON": "architecture is not readable JSON",
    "client's own error": "data.path = 'x' is not there.",
    "strange status": "'maybe'",
    "empty": "0 records of",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_one_bad_reply_never_costs_the_round(kind, tmp_path):
    def answer(message):
        bad = message.metadata.dst_node_id == 12
        return reply(message, broken(kind)) if bad else keyed(message)

    strategy = AveragingRound(
        run_dir=tmp_path, architecture={"depth": 2}, input_spec=SPEC, num_classes=2, **QUICK
    )
    result = run(strategy, answer)
    assert torch.equal(result.arrays.to_torch_state_dict()["body.weight"], torch.full((2, 3), 2.0))
    (rejection,) = strategy.outcome.rejected
    assert BROKEN[kind] in rejection.reason and rejection.reason.endswith(".")
    assert "\n" not in rejection.reason
    assert json.loads((tmp_path / "rejected" / "1.json").read_text())["reason"] == rejection.reason
    assert [upload.client for upload in strategy.outcome.accepted] == ["client-a", "client-c"]


def test_a_right_declaration_is_kept():
    def answer(message):
        table = {"depth": 2, "num_classes": 2}
        return reply(
            message,
            good_content(
                1.0,
                10,
                "me",
                **{
                    "architecture": json.dumps(table),
                    "input-spec": json.dumps(SPEC.to_dict()),
                    "label-counts": "[4, 6]",
                },
            ),
        )

    strategy = AveragingRound(architecture={"depth": 2}, input_spec=SPEC, num_classes=2, **QUICK)
    run(strategy, answer, nodes=[11])
    (upload,) = strategy.outcome.accepted
    assert upload.input_spec == SPEC and upload.label_counts == (4, 6)
    assert upload.architecture == {"depth": 2, "num_classes": 2}
    assert upload.metrics == {"train-loss": 1.0} and upload.num_examples == 10


def test_label_counts_that_lie_cost_the_counts_only(caplog):
    def answer(message):
        return reply(message, good_content(1.0, 10, "liar", **{"label-counts": "[3, 3]"}))

    strategy = AveragingRound(num_classes=2, **QUICK)
    run(strategy, answer, nodes=[11])
    (upload,) = strategy.outcome.accepted
    assert upload.label_counts is None and upload.num_examples == 10
    assert "liar: left out what it shares beside its weights: its label counts sum" in caplog.text


def test_errors_silence_no_data_and_repetitions_are_told_apart():
    def answer(message):
        node = message.metadata.dst_node_id
        if node == 11:
            return [keyed(message), keyed(message)]
        if node == 12:
            return failure(message, "Traceback ...\nRayTaskError\nValueError: broken", True)
        if node == 13:
            return None
        if node == 14:
            content = RecordDict({"metrics": MetricRecord({"num-examples": 0})})
            content["upload"] = ConfigRecord({"status": "no-data", "client-key": "client-x"})
            return reply(message, content)
        return ValueError("malformed object")

    strategy = AveragingRound(**QUICK)
    run(strategy, answer, nodes=range(11, 16), timeout=0.2)
    outcome = strategy.outcome
    assert len(outcome.accepted) == 1 and outcome.asked == 5
    assert outcome.repeated == 1 and [each.client for each in outcome.no_data] == ["client-x"]
    assert [(m.client, m.reason) for m in outcome.missing] == [
        ("node-13", "no reply within 0.2 s (server.timeout).")
    ]
    # The error came from the SuperLink's node id and is still mapped to the node asked.
    assert {r.client: r.reason for r in outcome.rejected} == {
        "node-12": "its ClientApp failed (ValueError: broken).",
        "node-15": "its reply could not be received (ValueError: malformed object).",
    }


def test_a_message_that_cannot_be_sent_is_a_rejection():
    grid = FakeGrid([11, 12], keyed)
    grid.refuse = {12}
    strategy = AveragingRound(**QUICK)
    strategy.start(grid, record(theta0()), timeout=1.0)
    assert strategy.outcome.asked == 2 and len(strategy.outcome.accepted) == 1
    assert strategy.outcome.rejected[0].client == "node-12"


def test_too_few_uploads_end_the_run_with_the_reasons():
    strategy = AveragingRound(min_clients=2, **QUICK)

    def answer(message):
        bad = message.metadata.dst_node_id != 11
        return reply(message, broken("nan")) if bad else keyed(message)

    with pytest.raises(AggregationError, match="Only 1 usable upload.*at least 2.*client-bad: "):
        run(strategy, answer)
    assert len(strategy.outcome.rejected) == 2


def test_a_round_of_silence_says_so():
    words = r"Only 0 usable.*2 missing \(node-11: no reply within 0.1 s \(server.timeout\); node-12"
    with pytest.raises(AggregationError, match=words):
        run(AveragingRound(**QUICK), lambda message: None, nodes=[11, 12], timeout=0.1)


def test_too_few_nodes_end_the_wait():
    with pytest.raises(AggregationError, match=r"Only 1 node\(s\) connected within 0.05 s"):
        run(AveragingRound(min_clients=2, **QUICK), keyed, nodes=[11])


def test_late_nodes_are_waited_for():
    class Growing(FakeGrid):
        looks = 0

        def get_node_ids(self):
            self.looks += 1
            return self.nodes[: self.looks]

    for wait in ({"expected_nodes": 3}, {"settle_seconds": 0.02}):
        strategy = AveragingRound(**{**QUICK, "wait_for_nodes": 5.0, **wait})
        strategy.start(Growing([11, 12, 13], keyed), record(theta0()), timeout=1.0)
        assert strategy.outcome.asked == 3


@pytest.mark.parametrize("seed", range(4))
def test_two_claims_of_one_key_are_settled_by_content(seed):
    def answer(message):
        return reply(message, good_content(float(message.metadata.dst_node_id), 10, "same"))

    def shuffled(nodes):
        return random.Random(seed).sample(nodes, len(nodes))

    strategy = AveragingRound(**QUICK)
    result = run(strategy, answer, order=shuffled)
    reference = AveragingRound(**QUICK)
    expected = run(reference, answer)
    assert len(strategy.outcome.accepted) == 3 and not strategy.outcome.rejected
    names = [upload.client for upload in strategy.outcome.accepted]
    assert names == [upload.client for upload in reference.outcome.accepted]
    assert len(set(names)) == 3 and all(name.startswith("same#") for name in names)
    assert result.arrays["body.weight"].data == expected.arrays["body.weight"].data


def test_a_used_run_folder_is_refused_before_training(tmp_path):
    run(AveragingRound(run_dir=tmp_path, **QUICK), keyed)
    grid = FakeGrid([11], keyed)
    with pytest.raises(RunFolderError, match="already holds uploads"):
        AveragingRound(run_dir=tmp_path, **QUICK).start(grid, record(theta0()))
    assert not grid.pushed


def test_uploads_reach_the_disk_as_they_arrive(tmp_path):
    seen = []

    def answer(message):
        seen.append(len(list((tmp_path / "uploads").glob("*.json"))))
        return keyed(message)

    run(AveragingRound(run_dir=tmp_path, **QUICK), answer)
    assert seen == [0, 1, 2]


def test_memory_is_flat_in_the_number_of_uploads():
    big = np.zeros(300_000, np.float32)

    def answer(message):
        values = np.full_like(big, message.metadata.dst_node_id)
        metrics = MetricRecord({"num-examples": 10})
        return reply(message, RecordDict({"arrays": record({"w": values}), "metrics": metrics}))

    def peak(clients):
        strategy = AveragingRound(**QUICK)
        gc.collect()
        gc.disable()  # nothing may wait for the collector
        tracemalloc.start()
        strategy.start(FakeGrid(range(clients), answer), record({"w": big}), timeout=5.0)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        gc.enable()
        assert len(strategy.outcome.accepted) == clients
        return most

    few = peak(5)
    assert peak(20) < 1.2 * few
    # θ₀, and of one reply: what was sent, its decoded values and what the file takes.
    assert few < 8 * big.nbytes


def test_a_fuse_that_forgets_a_parameter_is_told():
    class Forgetful(UploadRound):
        def fuse(self, uploads):
            state = uploads[0].load_state()
            del state["scale"]
            return state

    with pytest.raises(AggregationError, match="Forgetful.fuse returned other names"):
        run(Forgetful(**QUICK), keyed)


def test_record_names_can_be_chosen():
    def answer(message):
        assert set(message.content) == {"weights", "settings"}
        assert message.content["settings"]["server-round"] == 1
        content = good_content(1.0)
        content["weights"] = content.pop("arrays")
        content["metrics"]["n"] = content["metrics"].pop("num-examples")
        return reply(message, content)

    names = {"arrayrecord_key": "weights", "configrecord_key": "settings", "weighted_by_key": "n"}
    strategy = AveragingRound(**names, **QUICK)
    run(strategy, answer, nodes=[11])
    assert len(strategy.outcome.accepted) == 1


def test_federated_evaluation_weighs_by_examples_and_skips_bad_replies():
    def answer(message):
        if message.metadata.message_type == "train":
            return keyed(message)
        node = message.metadata.dst_node_id
        if node == 13:
            return failure(message, "broken")
        metrics = MetricRecord({"accuracy": float(node == 11), "num-examples": node - 10})
        return reply(message, RecordDict({"metrics": metrics}))

    grid_answers = {"nodes": [11, 12, 13]}
    off = run(AveragingRound(**QUICK), answer, **grid_answers)
    assert not off.evaluate_metrics_clientapp
    strategy = AveragingRound(federated_evaluation=True, **QUICK)
    grid = FakeGrid([11, 12, 13], answer)
    grid.turns = dict.fromkeys(grid.nodes, 0)
    result = strategy.start(grid, record(theta0()), timeout=1.0)
    assert dict(result.evaluate_metrics_clientapp[1]) == {"accuracy": pytest.approx(1 / 3)}


@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_min_clients_is_checked(value):
    with pytest.raises(ConfigError, match="min_clients"):
        AveragingRound(min_clients=value)


def test_a_reply_that_comes_too_late_is_missing_and_the_others_count(clock):
    strategy = AveragingRound(**QUICK)
    strategy.start(LateGrid(clock, keyed), record(theta0()), timeout=0.3)
    assert [upload.client for upload in strategy.outcome.accepted] == ["client-a", "client-b"]
    assert [missing.client for missing in strategy.outcome.missing] == ["node-13"]
    assert "no reply within 0.3 s" in strategy.outcome.missing[0].reason
    assert clock.now == pytest.approx(0.3, abs=0.02)
