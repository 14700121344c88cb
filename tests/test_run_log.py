"""The log of a run: few lines, in order, that end with the result or with what went wrong."""

import logging
import re

import pytest
from flwr.supercore.logger import FLOWER_LOGGER

from fedmitr_app.errors import ConfigError
from fedmitr_app.strategies.logs import join_flower_log, without_summaries

BEGINNING = (
    r"run folder: ",
    r"settings: preset 'quick', \d+ changed; all are in the run folder's config.json",
    r"server: device cpu, 1 thread",
    r"data: data.source = 'sklearn-digits': 1797 images of 10 classes",
    r"method: {method}( \(arXiv [0-9.]+\))?, one round",
    r"asking 3 client\(s\) to train once and upload their weights",
)
CLIENTS = (
    r"client client-000: device cpu, 1 thread, \d+ images of \d+ classes",
    r"upload 1 of 3: client-000, trained on \d+ images",
    r"client client-001: ",
    r"upload 2 of 3: client-001",
    r"client client-002: ",
    r"upload 3 of 3: client-002",
    r"3 upload\(s\) accepted of 3 asked",
)
FUSION = (
    r"measuring the clients' class priors: 48 images in ",
    r"== teacher: ensemble of 3 models, combined by prior-probed ==",
    r"== inversion: 16 images ==",
    r"inversion: 16 images in ",
    r"== distillation: 4 steps ==",
    r"distillation: 4 steps in ",
    r"diversity of the images: 48 images in ",
)
END = (
    r"evaluation of \d models on the test set: ",
    r"client +node +examples",
    r"model +test accuracy",
    r"one-round FedAvg ",
    r"run folder: ",
    r"report: .*report.html$",
)


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith(("fedmitr_app", "flwr"))]


def _in_order(lines: list[str], patterns: tuple[str, ...]) -> None:
    left = iter(lines)
    for pattern in patterns:
        assert any(re.match(pattern, line) for line in left), (pattern, lines)


@pytest.mark.parametrize(("method", "most"), [("fedmitr", 45), ("merged", 32)])
def test_a_run_is_told_in_order_and_in_few_lines(federation, caplog, method, most):
    caplog.set_level("INFO", logger="fedmitr_app")
    caplog.set_level("INFO", logger="flwr")
    federation.run(**{"server.method": method})
    lines = _said(caplog)
    beginning = tuple(each.replace("{method}", method) for each in BEGINNING)
    _in_order(lines, beginning + CLIENTS + (FUSION if method == "fedmitr" else ()) + END)
    assert len(lines) <= most, lines
    assert max(map(len, lines)) <= 300
    assert lines[-1] == f"report: {federation.folder / 'report.html'}"
    assert not any("Final results" in line or "ConfigRecord" in line for line in lines)


def test_many_simulated_clients_say_nothing_each(federation, caplog):
    caplog.set_level("INFO", logger="fedmitr_app")
    federation.clients = 24
    federation.run(**{"server.method": "fedavg", "partition.min-samples": 0, "client.epochs": 1})
    lines = _said(caplog)
    assert not any(line.startswith("client client-") for line in lines)
    uploads = [line for line in lines if line.startswith("upload ")]
    assert 1 <= len(uploads) <= 5 and len(lines) <= 50


def test_a_node_of_its_own_says_what_it_does(federation, caplog):
    caplog.set_level("INFO", logger="fedmitr_app")
    federation.task_type = "flwr-serverapp"
    federation.run(**{"server.method": "fedavg"})
    told = [line for line in _said(caplog) if "client client-001" in line]
    _in_order(
        told,
        (
            r"client client-001: device cpu, 1 thread, ",
            r"client client-001: \d+ images of .* are this client's, of data.source",
            r"== client client-001: training: \d+ steps ==",
            r"client client-001: training: \d+ steps in ",
        ),
    )
    assert len(told) == 4


def _flwr_exit(words: str, level: int = logging.ERROR) -> None:
    """Say Flower's last words as Flower's function of this name does."""
    FLOWER_LOGGER.log(level, words)


flwr_exit = _flwr_exit
flwr_exit.__code__ = flwr_exit.__code__.replace(co_name="flwr_exit")


def test_flowers_last_words_end_with_the_sentence_of_what_went_wrong(caplog):
    join_flower_log()
    flwr_exit("Exit Code: 700\n\nAn unhandled exception occurred")
    assert caplog.messages[-1].endswith("exception occurred")  # nobody foresaw that one
    error = ConfigError("client.epochs = 0 is not allowed.")
    FLOWER_LOGGER.error("Simulation raised an exception", exc_info=error)
    assert caplog.messages[-1] == f"Simulation raised an exception: {error}"
    assert "Traceback" not in caplog.text
    flwr_exit("Exit Code: 700\n\nAn unhandled exception occurred")
    first, *_, last = caplog.messages[-1].splitlines()
    assert first == "Exit Code: 700" and last == str(error)
    before = len(caplog.messages)
    caplog.set_level("INFO", logger="flwr")
    flwr_exit("", logging.INFO)
    assert len(caplog.messages) == before


def test_an_earlier_runs_sentence_does_not_end_the_next_one(caplog):
    join_flower_log()
    FLOWER_LOGGER.error("It failed", exc_info=ConfigError("client.epochs = 0 is not allowed."))
    join_flower_log()
    flwr_exit("Exit Code: 700\n\nAn unhandled exception occurred")
    assert caplog.messages[-1].endswith("exception occurred")


def test_only_flowers_summary_is_left_out_and_only_while_it_is_asked_for(caplog):
    caplog.set_level("INFO", logger="flwr")

    def say(module: str, level: int) -> None:
        where = f"/flwr/serverapp/strategy/{module}.py", 1
        FLOWER_LOGGER.handle(FLOWER_LOGGER.makeRecord("flwr", level, *where, module, (), None))

    for asked in (True, False):
        caplog.clear()
        with without_summaries():
            if asked:
                say("strategy", logging.INFO)
                say("strategy", logging.WARNING)
                say("grid", logging.INFO)
        if not asked:
            say("strategy", logging.INFO)
        assert caplog.messages == (["strategy", "grid"] if asked else ["strategy"])
