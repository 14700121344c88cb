"""A thin Grid whose replies come one by one, as they arrive.

Flower's own ``send_and_receive`` returns when the last reply is there, with all of
them in memory. Each reply here is pulled when the one before has been dealt with.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedmitr_app.strategies.naming import called, node_names
from fedmitr_app.utils.progress import SECONDS_BETWEEN_LINES, duration

_log = logging.getLogger(__name__)

MAX_PULL_FAILURES, FAILING_POLLS = 3, 60


class ReplyStream(Iterable[Message]):
    """Messages that were sent, and an iterator over their replies.

    Parameters
    ----------
    grid : Grid
        The grid to send through.
    messages : Iterable[Message]
        Sent at once, on construction.
    timeout : float | None
        Seconds from now after which replies are no longer waited for; what has
        arrived by then is still given. None waits for ever.
    poll_seconds : float
        Pause when no reply was ready.
    absence : float
        Seconds that a node may be out of reach and still be waited for: Flower gives its reply up
        for good as soon as somebody asks for it meanwhile.

    Attributes
    ----------
    nodes : dict[str, int]
        Message id to the node it was sent to, for the messages that were sent.
    pending : dict[str, int]
        The same for the messages that have no reply yet.
    undelivered : list[int]
        Nodes whose message could not be sent.
    unreadable : dict[int, str]
        Node to the reason why its reply could not be received.
    """

    def __init__(
        self,
        grid: Grid,
        messages: Iterable[Message],
        timeout: float | None,
        poll_seconds: float,
        absence: float = 0.0,
    ) -> None:
        self._grid = grid
        self._poll_seconds, self._absence = poll_seconds, absence
        self._away_since: dict[int, float] = {}
        self._started = time.monotonic()
        self.timeout = timeout
        self._deadline = None if timeout is None else self._started + timeout
        self._failures: dict[str, list[float]] = {}
        messages = list(messages)
        self._names = node_names(grid) if messages else {}
        ids = list(grid.push_messages(messages)) if messages else []
        self.nodes = _nodes_by_id(messages, ids)
        reached = set(self.nodes.values())
        targets = (message.metadata.dst_node_id for message in messages)
        self.undelivered = [node for node in targets if node not in reached]
        self.pending = dict(self.nodes)
        self.unreadable: dict[int, str] = {}

    def shorten_wait(self, seconds: float) -> None:
        """Wait at most so many seconds more, whatever the timeout allows."""
        sooner = time.monotonic() + seconds
        self._deadline = sooner if self._deadline is None else min(self._deadline, sooner)

    def node_of(self, reply: Message) -> int:
        """Return the node that was asked; an error reply may name the SuperLink instead."""
        asked = reply.metadata.reply_to_message_id
        return self.nodes.get(asked, reply.metadata.src_node_id)

    def name(self, node: int) -> str:
        """Return what a node is called in lists, logs and reports."""
        return self._names.get(node) or called(node)

    def __iter__(self) -> Iterator[Message]:
        last_line = self._started
        while self.pending:
            # Decided before the sweep: the last one takes everything that is ready.
            last_sweep = self._deadline is not None and time.monotonic() >= self._deadline
            waiting = len(self.pending)
            away = self._away()
            for message_id, node in tuple(self.pending.items()):
                if node not in away:
                    yield from self._pull(message_id)
            if last_sweep or not self.pending:
                return
            if len(self.pending) == waiting:
                time.sleep(self._pause())
            if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                here, asked = len(self.nodes) - len(self.pending), len(self.nodes)
                since = duration(last_line - self._started)
                _log.info(
                    "waiting for clients: %d of %d have answered, after %s", here, asked, since
                )

    def _away(self) -> set[int]:
        """Return the nodes that are out of reach, but not for long enough to be given up."""
        if not self._absence:
            return set()
        try:
            here = set(self._grid.get_node_ids())
        except Exception:  # the server's own network: what a pull says will tell
            return set()
        now = time.monotonic()
        for node in self.pending.values():
            if node in here:
                self._away_since.pop(node, None)
            elif self._away_since.setdefault(node, now) == now:
                _log.warning("%s is out of reach.", self.name(node))
        return {node for node, since in self._away_since.items() if now - since < self._absence}

    def _pull(self, message_id: str) -> Iterator[Message]:
        # One message at a time: memory holds one reply, and a reply that can't even be
        # decoded is known by its message.
        if message_id not in self.pending:
            return
        try:
            replies = list(self._grid.pull_messages([message_id]))
        except Exception as error:  # whatever a malformed reply or the network raises
            self._count_failure(message_id, error)
            return
        self._failures.pop(message_id, None)
        while replies:
            reply = replies.pop(0)
            self.pending.pop(reply.metadata.reply_to_message_id, None)
            yield reply

    def _count_failure(self, message_id: str, error: Exception) -> None:
        # In a row, and not all in the one moment in which the SuperLink is not there.
        times = self._failures.setdefault(message_id, [])
        times.append(time.monotonic())
        lasting = times[-1] - times[0] >= FAILING_POLLS * self._poll_seconds
        if len(times) >= MAX_PULL_FAILURES and lasting:
            node = self.pending.pop(message_id)
            self.unreadable[node] = f"{type(error).__name__}: {error}"

    def _pause(self) -> float:
        if self._deadline is None:
            return self._poll_seconds
        return max(0.0, min(self._poll_seconds, self._deadline - time.monotonic()))


class StreamingGrid(Grid):
    """Wrap a Grid so that ``send_and_receive`` returns a :class:`ReplyStream`."""

    def __init__(self, grid: Grid, poll_seconds: float = 0.5, absence: float = 0.0) -> None:
        self._inner = grid
        self._poll_seconds, self._absence = poll_seconds, absence

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> ReplyStream:
        """Send now; the replies come while the result is iterated over."""
        return ReplyStream(self._inner, messages, timeout, self._poll_seconds, self._absence)

    def set_run(self, run: Any) -> None:
        """See :class:`flwr.serverapp.Grid`."""
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        """See :class:`flwr.serverapp.Grid`."""
        return self._inner.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See :class:`flwr.serverapp.Grid`."""
        return self._inner.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """See :class:`flwr.serverapp.Grid`."""
        return self._inner.get_node_ids()

    def get_nodes(self) -> Any:
        """See :class:`flwr.serverapp.Grid`."""
        return self._inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See :class:`flwr.serverapp.Grid`."""
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See :class:`flwr.serverapp.Grid`."""
        return self._inner.pull_messages(message_ids)


def _nodes_by_id(messages: list[Message], ids: Sequence[str | None]) -> dict[str, int]:
    # Some grids leave a failed message's id out, others put None in its place; both
    # write the id into the message itself.
    if len(ids) == len(messages):
        pairs = zip(ids, messages, strict=True)
        return {str(key): message.metadata.dst_node_id for key, message in pairs if key}
    sent = set(ids)
    return {
        message.metadata.message_id: message.metadata.dst_node_id
        for message in messages
        if message.metadata.message_id in sent
    }
