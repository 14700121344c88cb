"""Show this package's log lines where Flower shows its own, and of Flower's those that tell."""

import contextlib
import logging
from collections.abc import Iterator

from flwr.serverapp.exception import AggregationError

from fedmitr_app.errors import FedmitrError

_SUMMARIES = frozenset({"strategy", "strategy_utils"})
"""Flower's modules that say what goes into a round, and what comes out of it."""


def join_flower_log() -> None:
    """Give the ``fedmitr_app`` logger Flower's handlers, unless it has its own.

    Flower's own logger then shows an error that was raised on purpose as its sentence, and ends
    with that sentence.
    """
    ours, flower = logging.getLogger("fedmitr_app"), logging.getLogger("flwr")
    flower.addFilter(_as_sentence)  # adding it again changes nothing
    _as_sentence.forget()  # what an earlier run of this process ended with
    if ours.handlers:
        return
    for handler in flower.handlers:
        ours.addHandler(handler)
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)


@contextlib.contextmanager
def without_summaries() -> Iterator[None]:
    """Leave out what Flower's ``Strategy.start`` says of its arguments and its result.

    Warnings and errors stay. The run's own lines say the rest.
    """
    flower = logging.getLogger("flwr")
    flower.addFilter(_no_summary)
    try:
        yield
    finally:
        flower.removeFilter(_no_summary)


def _no_summary(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or record.module not in _SUMMARIES


class _Sentence:
    """Puts a foreseen error's sentence, and its notes, where its stack trace would stand.

    Flower's last words, an exit code with a general remark, get the sentence behind them.
    """

    def __init__(self) -> None:
        self._told = ""

    def forget(self) -> None:
        """Have no sentence for Flower's last words."""
        self._told = ""

    def __call__(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, (FedmitrError, AggregationError)):
            self._told = " ".join([str(error), *getattr(error, "__notes__", [])])
            record.msg, record.args = f"{record.getMessage()}: {self._told}", None
            record.exc_info = None
        elif self._told and record.funcName == "flwr_exit" and record.levelno >= logging.ERROR:
            record.msg, record.args = f"{record.getMessage()}\n\n{self._told}", None
            self._told = ""
        # A run that went well ends with its result, not with Flower's empty last words.
        return bool(record.getMessage() or record.funcName != "flwr_exit")


_as_sentence = _Sentence()
