"""Show this package's log lines where Flower shows its own."""

import logging

from flwr.serverapp.exception import AggregationError

from fedmitr_app.errors import FedmitrError


def join_flower_log() -> None:
    """Give the ``fedmitr_app`` logger Flower's handlers, unless it has its own.

    Flower's own logger then shows an error that was raised on purpose without its stack.
    """
    ours, flower = logging.getLogger("fedmitr_app"), logging.getLogger("flwr")
    flower.addFilter(_without_stack)  # adding it again changes nothing
    if ours.handlers:
        return
    for handler in flower.handlers:
        ours.addHandler(handler)
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)


def _without_stack(record: logging.LogRecord) -> bool:
    """Take the stack trace from a record of a foreseen error: its sentence says everything."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, (FedmitrError, AggregationError)):
        record.exc_info = None
    return True
