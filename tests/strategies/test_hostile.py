"""One client, or the network, against the round: nobody else's upload is lost over it."""

import shutil

import pytest
import torch
from flwr.app import Array, Message

from fedmitr_app.strategies.records import key_digest
from fedmitr_app.strategies.streaming_grid import StreamingGrid
from tests.helpers.averaging import AveragingRound
from tests.helpers.fake_grid import FakeGrid, good_content, record, reply, theta0
from tests.helpers.rounds import QUICK, Outage, keyed, real, run, stopped


def keys_of(strategy):
    return [upload.client for upload in strategy.outcome.accepted]


@pytest.mark.parametrize("examples", [0, -3, float("nan"), [1, 2], 10**13, 10**9])
def test_a_number_of_examples_that_cannot_be_right_makes_all_count_alike(examples, caplog):
    def answer(message):
        # 10, ..., 30 examples: their average is not the mean.
        number = message.metadata.dst_node_id - 10
        return keyed(message, examples if number == 2 else 10 * number)

    strategy = AveragingRound(**QUICK)
    result = run(strategy, answer)
    assert keys_of(strategy) == ["client-a", "client-b", "client-c"]
    average = result.arrays.to_torch_state_dict()["body.weight"]
    assert torch.equal(average, torch.full((2, 3), 2.0))
    said = "All count alike: the number of examples of client-b can't be right."
    assert caplog.text.count(said) == 1


def test_a_table_without_end_is_not_kept():
    deep = "[" * 900 + "]" * 900

    def answer(message):
        content = good_content(1.0, 10, f"client-{message.metadata.dst_node_id}")
        if message.metadata.dst_node_id == 12:
            content = good_content(2.0, 10, "deep", architecture=f'{{"depth": 2, "x": {deep}}}')
        return reply(message, content)

    strategy = AveragingRound(architecture={"depth": 2}, **QUICK)
    run(strategy, answer)
    assert "client-11" in keys_of(strategy) and "client-13" not in strategy.outcome.missing
    kept = {each.client: each.architecture for each in strategy.outcome.accepted}
    assert kept.get("deep", {"depth": 2}) == {"depth": 2}


@pytest.mark.parametrize("losses", [(1.7e308, 1.7e308), (1.7e308, -1.7e308)])
def test_metrics_beyond_all_measure_cost_nothing(losses):
    def answer(message):
        content = keyed(message).content
        number = message.metadata.dst_node_id - 11
        if number < 2:
            content["metrics"]["train-loss"] = losses[number]
        return reply(message, content)

    strategy = AveragingRound(**QUICK)
    result = run(strategy, answer)
    assert dict(result.train_metrics_clientapp[1]) == {"train-loss": 3.0, "uploads": 3}


def test_one_value_that_drowns_the_average_does_not():
    def answer(message):
        content = keyed(message).content
        if message.metadata.dst_node_id == 12:
            weight = content["arrays"]["body.weight"].numpy().copy()
            weight[0, 0] = 1e18
            content["arrays"]["body.weight"] = Array(weight)
        return reply(message, content)

    strategy = AveragingRound(**QUICK)
    result = run(strategy, answer)
    assert keys_of(strategy) == ["client-a", "client-b", "client-c"]
    average = result.arrays.to_torch_state_dict()["body.weight"]
    assert average.abs().max() <= 4.0  # of 1, 3 and what is no longer than the median's


def test_copies_do_not_begin_the_patience():
    def answer(message):
        number = message.metadata.dst_node_id - 10
        return reply(message, good_content(float(max(number, 2)), 10, f"client-{number}"))

    class Slow(FakeGrid):
        sweeps = 0

        def pull_messages(self, message_ids):
            self.sweeps += 1
            # The two that say the same come first, the third some time after.
            asked = [self.pushed[key].metadata.dst_node_id for key in message_ids]
            return [] if asked == [13] and self.sweeps < 400 else super().pull_messages(message_ids)

    strategy = AveragingRound(min_clients=2, patience=0.01, **QUICK)
    strategy.start(Slow([11, 12, 13], answer), record(theta0()), timeout=20.0)
    assert keys_of(strategy) == ["client-1", "client-3"]


def test_who_claimed_a_key_keeps_nobody_from_training(tmp_path):
    stopped(tmp_path, lambda message: reply(message, good_content(9.0, 10, "client-a")), (99,))
    told = {}

    def answer(message):
        node = message.metadata.dst_node_id
        told[node] = message.content["config"].get("have-uploads")
        status = "kept" if node == 99 else "ok"
        return reply(message, good_content(1.0, 10, "client-a", status=status))

    strategy = AveragingRound(run_dir=tmp_path, resume=True, **QUICK)
    strategy.start(real([11, 99], answer), record(theta0()), timeout=1.0)
    assert told == {11: None, 99: [key_digest("client-a")]}
    assert sorted(upload.node for upload in strategy.outcome.accepted) == [11, 99]


def test_who_says_that_its_upload_is_here_must_be_right():
    def answer(message):
        content = keyed(message).content
        if message.metadata.dst_node_id == 12:
            content["upload"]["status"] = "kept"
        return reply(message, content)

    strategy = AveragingRound(**QUICK)
    run(strategy, answer)
    (refused,) = strategy.outcome.rejected
    assert refused.client == "client-b" and "which it is not" in refused.reason


def test_uploads_that_are_here_need_no_nodes(tmp_path):
    stopped(tmp_path, keyed)
    strategy = AveragingRound(run_dir=tmp_path, resume=True, min_clients=3, **QUICK)
    run(strategy, keyed, nodes=())
    assert keys_of(strategy) == ["client-a", "client-b", "client-c"]


def test_a_damaged_upload_leaves_the_other_of_its_name_in_place(tmp_path):
    def answer(message):
        return reply(message, good_content(float(message.metadata.dst_node_id), 10, "same"))

    run(AveragingRound(run_dir=tmp_path / "one", **QUICK), answer, (11, 12))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    damaged, other = sorted((tmp_path / "two" / "uploads").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    strategy = AveragingRound(run_dir=tmp_path / "two", resume=True, **QUICK)
    run(strategy, answer, (11, 12))
    (kept,) = strategy.outcome.accepted
    assert kept.weights == other and len(strategy.outcome.rejected) == 1


def test_nobody_writes_lines_of_the_log(caplog):
    def answer(message):
        content = keyed(message).content
        if message.metadata.dst_node_id == 12:
            content["upload"]["client-key"] = "client-a\nERROR all is lost"
            content["upload"]["status"] = "error"
            content["upload"]["reason"] = "one\nERROR two"
        if message.metadata.dst_node_id == 13:
            content["upload"]["status"], content["upload"]["reason"] = "error", "one\nERROR two"
        return reply(message, content)

    strategy = AveragingRound(**QUICK)
    run(strategy, answer)
    assert [each.client for each in strategy.outcome.rejected] == ["client-c", "node-12"]
    assert strategy.outcome.rejected[0].reason == "one ERROR two"
    assert all("\n" not in one.getMessage() for one in caplog.records if "all is" in one.message)


def test_messages_outlive_the_round():
    grid = FakeGrid([11], keyed)
    sent = []
    push = grid.push_messages
    grid.push_messages = lambda messages: push(sent.extend(messages) or sent)
    AveragingRound(**QUICK).start(grid, record(theta0()), timeout=86_400.0)
    assert sent[0].metadata.ttl > 86_400


@pytest.mark.parametrize(("absence", "accepted"), [(60.0, 3), (0.0, 2)])
def test_a_node_that_comes_back_has_lost_nothing(absence, accepted):
    strategy = AveragingRound(absence=absence, **QUICK)
    strategy.start(Outage([11, 12, 13], keyed), record(theta0()), timeout=20.0)
    assert len(strategy.outcome.accepted) == accepted
    for lost in strategy.outcome.rejected:
        assert lost.reason == "it was out of reach for longer than server.absence."


def test_a_superlink_that_stumbles_now_and_then_costs_nobody_its_upload():
    class Stumbling(FakeGrid):
        def pull_messages(self, message_ids):
            if self.pulls % 7 < 6 and self.pulls < 60:
                self.pulls += 1
                raise ConnectionError("500")
            return super().pull_messages(message_ids)

    grid = Stumbling([11], keyed)
    stream = StreamingGrid(grid, poll_seconds=0.001).send_and_receive(
        [Message(good_content(1.0), 11, "train")], timeout=10.0
    )
    assert len(list(stream)) == 1 and not stream.unreadable


def test_a_reply_that_never_can_be_read_is_given_up():
    grid = FakeGrid([11], lambda message: ValueError("no record"))
    stream = StreamingGrid(grid, poll_seconds=0.001).send_and_receive(
        [Message(good_content(1.0), 11, "train")], timeout=10.0
    )
    assert not list(stream) and stream.unreadable == {11: "ValueError: no record"}
