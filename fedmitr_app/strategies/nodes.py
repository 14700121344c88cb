"""Wait for nodes, but not for ever."""

import logging
import time

import ray
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError

from fedmitr_app.errors import BackendError
from fedmitr_app.utils.progress import SECONDS_BETWEEN_LINES

_log = logging.getLogger(__name__)


def await_nodes(
    grid: Grid,
    *,
    at_least: int,
    expected: int | None,
    seconds: float,
    settle_seconds: float,
    poll_seconds: float,
) -> list[int]:
    """Return the ids of the connected nodes, sorted.

    There is only one round, so a node that connects a moment late is lost: waits until
    the ``expected`` nodes are there, or, when their number is unknown, until at least
    ``at_least`` are and their number has not grown for ``settle_seconds``.

    Raises
    ------
    AggregationError
        If fewer than ``at_least`` are connected after ``seconds``.
    """
    started = last_line = last_change = time.monotonic()
    nodes: list[int] = []
    while True:
        found = sorted(grid.get_node_ids())
        now = time.monotonic()
        if len(found) != len(nodes):
            last_change = now
        nodes = found
        if expected is not None:
            ready = len(nodes) >= max(expected, at_least)
        else:
            ready = len(nodes) >= at_least and now - last_change >= settle_seconds
        if ready or now - started >= seconds:
            break
        if now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            _log.info("waiting for nodes: %d of %d are here", len(nodes), expected or at_least)
        time.sleep(min(poll_seconds, max(0.0, seconds - (now - started))))
    if len(nodes) < at_least:
        raise AggregationError(
            f"Only {len(nodes)} node(s) connected within {seconds:g} s but at least {at_least} "
            "are needed: start more SuperNodes, or change server.min-clients or "
            "server.wait-for-nodes."
        )
    return nodes


def await_ray(seconds: float = 120.0, poll_seconds: float = 0.2) -> None:
    """Wait until a simulation has its Ray: a second one in its process would stand in its way.

    Raises
    ------
    BackendError
        If it has none after ``seconds``.
    """
    started = time.monotonic()
    while not ray.is_initialized():
        if time.monotonic() - started > seconds:
            raise BackendError(
                f"Flower's simulation has not started Ray within {seconds:g} s: set "
                "inversion.backend = 'local'."
            )
        time.sleep(poll_seconds)
