"""Show this package's log lines where Flower shows its own."""

import logging


def join_flower_log() -> None:
    """Give the ``fedmitr_app`` logger Flower's handlers, unless it has its own."""
    ours, flower = logging.getLogger("fedmitr_app"), logging.getLogger("flwr")
    if ours.handlers:
        return
    for handler in flower.handlers:
        ours.addHandler(handler)
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)
