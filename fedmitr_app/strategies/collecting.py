"""From the replies of a round to uploads on disk, one reply at a time."""

import logging
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp.exception import AggregationError

from fedmitr_app.errors import UploadError
from fedmitr_app.strategies.naming import called
from fedmitr_app.strategies.records import (
    CheckedReply,
    RecordKeys,
    check_reply,
    key_digest,
    status_of,
)
from fedmitr_app.strategies.streaming_grid import ReplyStream
from fedmitr_app.uploads import (
    ArraySpec,
    Expected,
    Rejection,
    Spool,
    Upload,
)
from fedmitr_app.uploads.metadata import check_client_key
from fedmitr_app.uploads.outcome import RoundOutcome
from fedmitr_app.utils.progress import SECONDS_BETWEEN_LINES
from fedmitr_app.utils.text import LONGEST, harmless

_log = logging.getLogger(__name__)

_MANY_NODES = 20
_SHOWN_NODES = 3


class Collector:
    """Check each reply by itself and spool it; keep only the facts.

    One bad reply never costs the round: whatever is wrong with it becomes a reason.

    Parameters
    ----------
    spool : Spool
        Where uploads and reasons are written.
    keys : RecordKeys
        Names of the records in the replies.
    reference : Mapping[str, ArraySpec]
        Names, shapes and types of θ₀.
    expected : Expected
        What the server knows about its model.
    enough, patience : int, float
        Once so many uploads are there, wait for the others at most so many seconds; 0 waits as
        long as the timeout allows.
    told : Mapping[int, Collection[str]]
        Node to the digests of the keys whose uploads it was told are here: no other node can
        say that it need not send one.
    """

    def __init__(
        self,
        spool: Spool,
        keys: RecordKeys,
        reference: Mapping[str, ArraySpec],
        expected: Expected,
        enough: int = 1,
        patience: float = 0.0,
        told: Mapping[int, Collection[str]] = MappingProxyType({}),
    ) -> None:
        self._told = told
        self._enough, self._patience = enough, patience
        self._shortened = False
        self._name: Callable[[int], str] = called
        self._spool = spool
        self._keys = keys
        self._reference = reference
        self._expected = expected
        self._no_data: list[Rejection] = []
        self._answered: set[str] = set()
        self._repeated = 0
        self._received = 0
        self._last_line = 0.0

    def collect(self, replies: Iterable[Message]) -> RoundOutcome:
        """Take the replies as they come, and return what became of them."""
        started = time.monotonic()
        stream = replies if isinstance(replies, ReplyStream) else None
        node_of = stream.node_of if stream else _sender
        self._name = stream.name if stream else called
        self._shorten_if_enough(stream)
        for reply in replies:
            self._take(reply, node_of, len(stream.nodes) if stream else 0)
            self._shorten_if_enough(stream)
            del reply  # or two uploads would be in memory while the next one is received
        missing = self._note_silent_nodes(stream) if stream else []
        accepted = self._spool.settle()
        asked = len(stream.nodes) + len(stream.undelivered) if stream else len(self._answered)
        rejected, no_data = note_shared_keys(accepted, self._spool.rejections, self._no_data)
        return RoundOutcome(
            accepted=tuple(accepted),
            rejected=rejected,
            no_data=no_data,
            asked=asked,
            missing=in_order(missing),
            repeated=self._repeated + self._spool.repeated,
            collect_seconds=time.monotonic() - started,
        )

    def _shorten_if_enough(self, stream: ReplyStream | None) -> None:
        enough = self._spool.distinct >= self._enough
        if stream and self._patience and enough and not self._shortened:
            _log.info("Enough uploads: waiting %g s for the others.", self._patience)
            stream.shorten_wait(self._patience)
            self._shortened = True

    def _take(self, reply: Message, node_of: Callable[[Message], int], asked: int) -> None:
        question = reply.metadata.reply_to_message_id or f"reply-{len(self._answered)}"
        if question in self._answered:
            self._repeated += 1
            return
        self._answered.add(question)
        node = node_of(reply)
        who = self._name(node)
        if reply.has_error():
            self._reject(who, failure_sentence(reply.error), node)
            return
        try:
            status, client, reason = status_of(reply.content)
            who = check_client_key(client) if client else who
            if status == "no-data":
                self._no_data.append(Rejection(who, "its shard is empty", node))
                _log.info("%s holds no data.", who)
                return
            if status == "kept":
                if key_digest(client) not in self._told.get(node, ()):
                    raise UploadError("it says that its upload is here, which it is not.")
                _log.info("%s has sent its upload before.", who)
                return
            if status != "ok":
                raise UploadError(reason or f"its status is {status[:40]!r}.")
            checked = check_reply(reply.content, self._keys, self._reference, self._expected)
        except UploadError as error:
            self._reject(who, str(error), node)
            return
        except Exception as error:  # a reply nobody foresaw must not cost the others
            _log.debug("Unreadable reply of %s: %s", who, harmless(traceback.format_exc(), 5000))
            self._reject(who, f"it could not be read ({type(error).__name__}: {error}).", node)
            return
        self._keep(checked, node, asked)

    def _keep(self, checked: CheckedReply, node: int, asked: int) -> None:
        # Outside the try: a full disk is the server's trouble, not this client's.
        key = self._spool.add(checked.arrays, checked.metadata, checked.moments, node)
        self._received += 1
        for note in checked.notes:
            _log.info("%s: %s", key, harmless(note))
        for reason in checked.left_out:
            _log.warning("%s: %s", key, harmless(reason))
        now = time.monotonic()
        due = now - self._last_line >= SECONDS_BETWEEN_LINES or self._received == asked
        if due or asked < _MANY_NODES:
            self._last_line = now
            total = f" of {asked}" if asked else ""
            examples = checked.metadata.num_examples or "an unknown number of"
            _log.info("upload %d%s: %s, trained on %s images", self._received, total, key, examples)

    def _note_silent_nodes(self, stream: ReplyStream) -> list[Rejection]:
        for node in stream.undelivered:
            self._reject(self._name(node), "the message could not be sent to it.", node)
        for node, reason in stream.unreadable.items():
            why = f"its reply could not be received ({_first_line(reason)})."
            self._reject(self._name(node), why, node)
        # None are pending without a time limit: then every reply was waited for.
        why = f"no reply within {stream.timeout:g} s (server.timeout)."
        if self._shortened:
            why = f"no reply {self._patience:g} s after {self._enough} upload(s) (server.patience)."
        missing = [Rejection(self._name(node), why, node) for node in stream.pending.values()]
        for each in missing:
            _log.warning("%s: %s", each.client, each.reason)
        return missing

    def _reject(self, who: str, reason: str, node: int) -> None:
        self._spool.reject(Rejection(who, reason, node))


def note_shared_keys(
    accepted: Iterable[Upload], rejected: Iterable[Rejection], no_data: Iterable[Rejection]
) -> tuple[tuple[Rejection, ...], tuple[Rejection, ...]]:
    """Return the rejected and those without data, each with who else gives the same key.

    A key is what a client says: who is refused, or says that there is no data, under another's
    key must not look like that other.
    """
    rejected, no_data = tuple(rejected), tuple(no_data)
    givers: dict[str, set[int]] = {}
    replies: Iterable[Upload | Rejection] = (*accepted, *rejected, *no_data)
    for each in replies:
        givers.setdefault(each.client.partition("#")[0], set()).add(each.node)
    for client, nodes in givers.items():
        nodes.discard(0)  # nobody knows whose it is
        if len(nodes) > 1:
            names = ", ".join(f"node-{node}" for node in sorted(nodes))
            _log.warning("Several nodes give the client key %r: %s.", client, names)

    def told(each: Rejection) -> Rejection:
        others = givers[each.client.partition("#")[0]] - {each.node}
        if not others:
            return each
        names = ", ".join(f"node-{node}" for node in sorted(others)[:_SHOWN_NODES])
        # Shortened first: no words of the client's may push these out.
        reason = harmless(each.reason.rstrip("."), LONGEST // 2)
        return replace(each, reason=f"{reason} ({names} gives this key too).")

    return in_order(map(told, rejected)), in_order(map(told, no_data))


def in_order(replies: Iterable[Rejection]) -> tuple[Rejection, ...]:
    """Return replies in an order that doesn't depend on when they came."""
    return tuple(sorted(replies, key=lambda each: (each.client, each.node, each.reason)))


def require_enough(outcome: RoundOutcome, min_clients: int) -> None:
    """Raise ``AggregationError`` with the reasons if too few uploads can be used."""
    accepted = len(outcome.accepted)
    if accepted >= min_clients:
        return
    reasons = outcome.reasons()
    raise AggregationError(
        f"Only {accepted} usable upload(s) where at least {min_clients} "
        f"(server.min-clients) are needed: {outcome.sentence()}"
        f"{f' ({reasons})' if reasons else ''}."
    )


def _sender(reply: Message) -> int:
    return reply.metadata.src_node_id


def failure_sentence(error: Error) -> str:
    """Say why there is an error instead of a node's reply."""
    reason = error.reason
    if error.code == ErrorCode.NODE_UNAVAILABLE:
        return "it was out of reach for longer than server.absence."
    if "secaggplus" in (reason or ""):
        return (
            "its ClientApp applies secure aggregation (secaggplus_mod), which hides the individual "
            "model that is needed here: leave the mod out."
        )
    return f"its ClientApp failed ({_first_line(reason)})."


def _first_line(text: str | None) -> str:
    # Flower puts a stack trace in; its last line names the error.
    lines = [line.strip() for line in (text or "no reason given").splitlines() if line.strip()]
    return (lines[-1] if lines else "no reason given").rstrip(".")[:300]
