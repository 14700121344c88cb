"""What clients say of themselves: it can neither rule a terminal nor speak for somebody else."""

import csv
import json
import logging

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError

from fedmitr_app.methods import MethodResult
from fedmitr_app.report.tables import client_table, write_clients_csv
from fedmitr_app.results import Results
from fedmitr_app.results.tables import client_rows
from fedmitr_app.strategies.records import MOMENTS_KEY
from fedmitr_app.teacher import Trust
from fedmitr_app.uploads import WeightCheck
from tests.helpers.averaging import AveragingRound
from tests.helpers.fake_grid import FakeGrid, failure, good_content, record, reply, theta0
from tests.helpers.rounds import QUICK, real, run, stopped

EVIL = "=cmd|' /C calc'!A0\x1b[2J\x1b]0;owned\x07\u202egpj\u2066\u200b\x9b31m"
EVIL += "\r\n\u2028ERROR all is lost\x7f"


def rows_of(strategy):
    """The clients' table of a round, as the report has it."""
    count = len(strategy.outcome.accepted)
    judged = {"trust": [Trust(1.0, 1.0, 1.0)] * count, "weight_checks": [WeightCheck()] * count}
    left, fused = frozenset(), MethodResult(None)
    results = Results(strategy.outcome, {}, None, (), {}, 0, {}, {}, left, fused, **judged)
    return client_rows(results)


def say_in_every_way(message):
    """Say something evil in each place where a client may say something."""
    number = message.metadata.dst_node_id - 10
    content = good_content(float(number), 10, f"client-{number}")
    if number == 1:
        content["upload"] = ConfigRecord({"client-key": EVIL, "status": "ok"})
    elif number == 2:
        content["upload"]["status"], content["upload"]["reason"] = "error", EVIL
    elif number == 3:
        content["upload"]["status"] = EVIL
    elif number == 4:
        return failure(message, f"Traceback\n{EVIL}")
    elif number == 5:
        content["arrays"] = record({EVIL: theta0()["head.bias"]})
    elif number == 6:
        content["metrics"] = MetricRecord({"num-examples": 10, EVIL: 1.0, "train-loss": 1.0})
    elif number == 7:
        content[MOMENTS_KEY] = record({EVIL: theta0()["head.bias"]})
    elif number == 8:
        content["upload"] = ConfigRecord({"architecture": json.dumps({"depth": EVIL})})
    elif number == 10:
        return ValueError(EVIL)
    return reply(message, content)


def test_nothing_that_a_client_says_rules_a_terminal_or_a_spreadsheet(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    strategy = AveragingRound(run_dir=tmp_path, min_clients=2, architecture={"depth": 2}, **QUICK)
    run(strategy, say_in_every_way, range(11, 21), timeout=0.3)
    assert {upload.client for upload in strategy.outcome.accepted} == {
        "client-6",
        "client-7",
        "client-9",
    }
    assert len(strategy.outcome.rejected) + len(strategy.outcome.missing) == 7
    ours = [line for line in caplog.records if line.name.startswith("fedmitr_app")]
    assert len(ours) > 8 and all(line.getMessage().strip("\t").isprintable() for line in ours)
    for path in (tmp_path / "rejected").glob("*.json"):
        words = json.loads(path.read_text())
        assert words["client"].isprintable() and words["reason"].isprintable()
    rows = rows_of(strategy)
    assert all(line.isprintable() for line in client_table(rows).splitlines())
    table = write_clients_csv(rows, tmp_path / "clients.csv").read_text()
    assert "".join(table.split("\n")).isprintable()
    for row in csv.reader(table.splitlines()):
        assert not any(cell.startswith(tuple("=+@")) for cell in row)
    written = "".join(path.read_text() for path in tmp_path.glob("*.jsonl"))
    assert "\x1b" not in written + "".join(capfd.readouterr())


def test_what_is_left_out_is_told_of_in_harmless_words(caplog):
    arrays = {**theta0(), "head.weight": theta0()["body.weight"]}

    def answer(message):
        content = good_content(1.0, 10, "client-a")
        content["arrays"] = record(arrays)
        content[MOMENTS_KEY] = record({EVIL: theta0()["head.bias"]})
        return reply(message, content)

    strategy = AveragingRound(**QUICK)
    strategy.start(FakeGrid([11], answer), record(arrays), timeout=1.0)
    (said,) = [line.getMessage() for line in caplog.records if "left out" in line.getMessage()]
    assert "unknown to the server (=cmd|" in said and said.isprintable()


def test_the_sentence_that_ends_a_run_is_printable():
    def answer(message):
        return failure(message, EVIL)

    with pytest.raises(AggregationError) as ended:
        run(AveragingRound(min_clients=2, **QUICK), answer)
    assert str(ended.value).isprintable()


def without_data(message, key):
    upload = ConfigRecord({"client-key": key, "status": "no-data", "reason": "its shard is empty."})
    return reply(message, RecordDict({"upload": upload}))


def test_nobody_is_without_data_because_another_says_so(caplog):
    """Node 99 says that client-a has none; node 98 fails in its name; client-a has uploaded."""

    def answer(message):
        node = message.metadata.dst_node_id
        if node == 99:
            return without_data(message, "client-a")
        if node == 98:
            content = good_content(1.0, 10, "client-a", status="error", reason="no " * 300)
            return reply(message, content)
        return reply(message, good_content(float(node), 10, f"client-{'ab'[node - 11]}"))

    strategy = AveragingRound(**QUICK)
    run(strategy, answer, (11, 12, 98, 99))
    rows = {(row.client, row.node): row for row in rows_of(strategy)}
    assert rows.keys() == {("client-a", n) for n in (11, 98, 99)} | {("client-b", 12)}
    assert rows["client-a", 11].status == "ok"
    assert rows["client-a", 99].status == "no data"
    assert rows["client-a", 99].reason == (
        "its shard is empty (node-11, node-98 gives this key too)."
    )
    assert rows["client-a", 98].reason.endswith("\u2026 (node-11, node-99 gives this key too).")
    assert "Several nodes give the client key 'client-a': node-11, node-98, node-99." in caplog.text
    shown = client_table(list(rows.values()))
    assert [line.split()[1] for line in shown.splitlines()[2:]] == ["11", "98", "99", "12"]


def test_two_that_say_they_have_no_data_under_one_key_are_two():
    def answer(message):
        if message.metadata.dst_node_id == 11:
            return reply(message, good_content(1.0, 10, "client-a"))
        return without_data(message, "client-b")

    strategy = AveragingRound(**QUICK)
    run(strategy, answer)
    assert [(each.client, each.node) for each in strategy.outcome.no_data] == [
        ("client-b", 12),
        ("client-b", 13),
    ]


def test_who_calls_itself_like_another_node_is_known_by_its_own():
    def answer(message):
        if message.metadata.dst_node_id == 11:
            return failure(message, "it broke")
        return reply(message, good_content(1.0, 10, "node-11", status="error", reason="so did I"))

    with pytest.raises(AggregationError):
        run(strategy := AveragingRound(**QUICK), answer, (11, 12))
    rows = [(row.client, row.node) for row in rows_of(strategy)]
    assert rows == [("node-11", 11), ("node-11", 12)]
    assert all("gives this key too" in each.reason for each in strategy.outcome.rejected)


def test_only_who_was_told_so_has_sent_its_upload_before(tmp_path):
    stopped(tmp_path, lambda message: reply(message, good_content(9.0, 10, "client-a")), (11,))

    def answer(message):
        status = "kept" if message.metadata.dst_node_id != 12 else "ok"
        content = good_content(1.0, 10, "client-a", status=status)
        if message.metadata.dst_node_id == 12:
            content = good_content(2.0, 10, "client-b")
        return reply(message, content)

    strategy = AveragingRound(run_dir=tmp_path, resume=True, **QUICK)
    strategy.start(real([11, 12, 99], answer), record(theta0()), timeout=1.0)
    (refused,) = strategy.outcome.rejected
    assert (refused.client, refused.node) == ("client-a", 99)
    assert refused.reason.startswith("it says that its upload is here, which it is not")
