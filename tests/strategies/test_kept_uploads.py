"""Whatever stops fusing, nobody's training is lost: the uploads stay, and the error says where."""

import logging
import re
import tempfile
from pathlib import Path

import pytest
import torch
from flwr.serverapp.exception import AggregationError

from fedmitr_app.errors import ConfigError
from fedmitr_app.strategies.logs import join_flower_log
from tests.helpers.averaging import AveragingRound
from tests.helpers.fake_grid import FakeGrid, record, theta0
from tests.helpers.rounds import QUICK, keyed, run


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made, for looking into."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


class Broken(AveragingRound):
    """A method with a mistake in it."""

    def __init__(self, error, **settings):
        super().__init__(**settings, **QUICK)
        self.error = error

    def fuse(self, uploads):
        raise self.error


def told_by(error):
    """The folder that an error's note names."""
    (note,) = error.__notes__
    assert note.startswith("The uploads are kept in '") and "\n" not in note
    return Path(re.match("The uploads are kept in '([^']+)'", note).group(1))


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("a mistake"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        ConfigError("a setting is wrong."),
        AggregationError("too few are trusted."),
        KeyboardInterrupt(),
        SystemExit(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_stops_fusing_costs_no_upload(error, temporary):
    with pytest.raises(type(error)) as raised:
        run(Broken(error), keyed)
    folder = told_by(raised.value)
    assert folder.parent == temporary
    assert "move it to where it lasts" in raised.value.__notes__[0]
    assert "(in code: uploads_from='" in raised.value.__notes__[0]
    # As told: nobody trains again.
    grid = FakeGrid([], keyed)
    again = AveragingRound(uploads_from=folder, **QUICK)
    result = again.start(grid, record(theta0()))
    body = result.arrays.to_torch_state_dict()["body.weight"]
    assert torch.equal(body, torch.full((2, 3), 2.0)) and not grid.sent
    assert list(temporary.iterdir()) == [folder]  # which the second round's own has left


def test_a_second_failure_points_at_the_same_uploads(temporary):
    with pytest.raises(ZeroDivisionError) as first:
        run(Broken(ZeroDivisionError()), keyed)
    folder = told_by(first.value)
    with pytest.raises(ZeroDivisionError) as second:
        run(Broken(ZeroDivisionError(), uploads_from=folder), keyed)
    assert told_by(second.value) == folder and list(temporary.iterdir()) == [folder]


def test_a_run_folder_is_named_and_no_temporary_one_made(tmp_path, temporary):
    with pytest.raises(ZeroDivisionError) as raised:
        run(Broken(ZeroDivisionError(), run_dir=tmp_path / "run"), keyed)
    assert told_by(raised.value) == tmp_path / "run"
    assert "temporary" not in raised.value.__notes__[0] and not list(temporary.iterdir())


@pytest.mark.parametrize("fails", ["pack", "evaluate_fn"])
def test_what_fails_after_fusing_keeps_them_too(fails, temporary):
    class Forgetful(AveragingRound):
        def fuse(self, uploads):
            return {} if fails == "pack" else super().fuse(uploads)

    def evaluate(server_round, arrays):
        assert server_round == 0, "no test data after all"

    with pytest.raises((AggregationError, AssertionError)) as raised:
        run(Forgetful(**QUICK), keyed, evaluate_fn=evaluate)
    assert len(list((told_by(raised.value) / "uploads").glob("*.json"))) == 3


def test_a_round_that_lacks_uploads_can_be_gone_on_with(temporary):
    def answer(message):
        return keyed(message) if message.metadata.dst_node_id < 13 else None

    with pytest.raises(AggregationError) as raised:
        run(AveragingRound(min_clients=3, **QUICK), answer)
    assert "(in code: run_dir='" in raised.value.__notes__[0]
    folder = told_by(raised.value)
    run(AveragingRound(min_clients=3, run_dir=folder, resume=True, **QUICK), keyed)
    assert len(list((folder / "uploads").glob("*.json"))) == 3


def test_nothing_stays_of_a_round_that_went_well_or_that_nobody_sent_anything_for(temporary):
    run(AveragingRound(**QUICK), keyed)
    with pytest.raises(AggregationError) as raised:
        run(AveragingRound(**QUICK), lambda message: None, timeout=0.1)
    assert not hasattr(raised.value, "__notes__") and not list(temporary.iterdir())


def test_flowers_log_ends_with_where_they_are(caplog):
    join_flower_log()
    flower = logging.getLogger("flwr")
    with caplog.at_level(logging.ERROR):
        caplog.handler.setFormatter(logging.Formatter("%(message)s"))
        flower.addHandler(caplog.handler)
        try:
            for error in (ZeroDivisionError("a mistake"), AggregationError("too few.")):
                with pytest.raises(type(error)) as raised:
                    run(Broken(error), keyed)
                flower.error("ServerApp raised an exception", exc_info=raised.value)
                assert caplog.text.rstrip().endswith(raised.value.__notes__[0])
                assert str(error) in caplog.text
        finally:
            flower.removeHandler(caplog.handler)
    assert "Traceback" not in caplog.text.rpartition("ServerApp raised")[2]  # a sentence


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_our_own_log_says_it_for_who_shows_no_error(error, caplog):
    with pytest.raises(type(error)) as raised:
        run(Broken(error), keyed)
    assert caplog.messages[-1] == raised.value.__notes__[0]
