"""Show this package's log lines where Flower shows its own."""

import logging

from flwr.serverapp.exception import AggregationError

from fedmitr_app.errors import FedmitrError


def join_flower_log() -> None:
    """Give the ``fedmitr_app`` logger Flower's handlers, unless it has its own.

    Flower's own logger then shows an error that was raised on purpose as its sentence.
    """
    ours, flower = logging.getLogger("fedmitr_app"), logging.getLogger("flwr")
    flower.addFilter(_as_sentence)  # adding it again changes nothing
    if ours.handlers:
        return
    for handler in flower.handlers:
        ours.addHandler(handler)
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)


def _as_sentence(record: logging.LogRecord) -> bool:
    """Put a foreseen error's sentence, and its notes, where its stack trace would stand."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, (FedmitrError, AggregationError)):
        told = " ".join([str(error), *getattr(error, "__notes__", [])])
        record.msg, record.args = f"{record.getMessage()}: {told}", None
        record.exc_info = None
    return True
