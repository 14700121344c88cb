"""From what nodes say of the global model to a score that none of them decides alone."""

import logging
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message

from fedmitr_app.errors import UploadError
from fedmitr_app.evaluation import FederatedScore
from fedmitr_app.strategies.collecting import failure_sentence
from fedmitr_app.strategies.naming import called
from fedmitr_app.strategies.records import RECEIVED, RecordKeys, metrics_of, status_of
from fedmitr_app.strategies.streaming_grid import ReplyStream
from fedmitr_app.uploads import check_num_examples, doubtful_counts, example_counts
from fedmitr_app.uploads.metadata import finite_metrics
from fedmitr_app.utils.text import harmless

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Reply:
    """What one node says; counted as an upload is."""

    client: str
    num_examples: int | None
    metrics: Mapping[str, float] = field(default_factory=dict)


def collect_scores(
    replies: Iterable[Message],
    keys: RecordKeys,
    known: Collection[str] | None = None,
    patience: float = 0.0,
) -> dict[str, FederatedScore]:
    """Return each metric's mean over the nodes that report it, by their numbers of images.

    Nothing proves those numbers: they count as uploads' do under a defence, for at most
    ``uploads.shares.CAP`` times the median node's, and all alike if one can't be right.

    Parameters
    ----------
    known : Collection[str] | None
        The metrics that there are, each a share: others are left out, and so are replies with a
        value that is no share. None takes any finite number under any name, as Flower's own
        strategies do.
    patience : float
        Seconds to wait for the others once one node has answered; 0 waits for all.
    """
    stream = replies if isinstance(replies, ReplyStream) else None
    heard: list[_Reply] = []
    answered: set[str] = set()
    received = 0
    for reply in replies:
        question = reply.metadata.reply_to_message_id or f"reply-{len(answered)}"
        if question in answered:
            continue
        answered.add(question)
        node = stream.node_of(reply) if stream else reply.metadata.src_node_id
        who = stream.name(node) if stream else called(node)
        try:
            found = _read(reply, who, keys, known)
        except Exception as error:  # one that nobody foresaw must not cost the others, either
            told = error if isinstance(error, UploadError) else "it could not be read."
            _log.warning("The evaluation of %s is left out: %s", who, harmless(told))
            continue
        if stream and patience and len(answered) == 1:
            stream.shorten_wait(patience)
        received += found is None
        heard += [found] if found is not None and found.metrics else []
    if received:
        _log.info("%d node(s) received the global model.", received)
    if stream and stream.pending:
        silent = ", ".join(sorted(stream.name(node) for node in stream.pending.values()))
        setting = "server.patience" if patience and answered else "server.timeout"
        _log.warning("No evaluation came in time (%s) from %s.", setting, silent)
    names = sorted({name for reply in heard for name in reply.metrics})
    return {name: _score(name, [each for each in heard if name in each.metrics]) for name in names}


def _read(
    reply: Message, who: str, keys: RecordKeys, known: Collection[str] | None
) -> _Reply | None:
    """Return what a reply says, with no metrics if it holds no data; None for a mere receipt."""
    if reply.has_error():
        raise UploadError(failure_sentence(reply.error))
    status, _, reason = status_of(reply.content)
    if status == RECEIVED:
        return None
    if status == "no-data":
        _log.info("%s holds no data to evaluate on.", who)
        return _Reply(who, None)
    if status != "ok":
        raise UploadError(reason or f"its status is {status[:40]!r}.")
    if reason:  # of what went wrong beside the evaluation
        _log.warning("%s: %s", who, harmless(reason))
    metrics = metrics_of(reply.content, keys)
    count = metrics.pop(keys.weighted_by, None)
    try:
        examples = check_num_examples(count)
    except UploadError:
        examples = None
    if known is None:
        return _Reply(who, examples, finite_metrics(metrics))
    shares = {name: _share(name, metrics[name]) for name in sorted(set(metrics) & set(known))}
    if not shares:
        raise UploadError(f"it has none of {', '.join(sorted(known))}.")
    return _Reply(who, examples, shares)


def _share(name: str, value: Any) -> float:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not plain or not 0 <= value <= 1:  # which no NaN is
        raise UploadError(f"{name} = {str(value)[:40]}: it must be a share from 0 to 1.")
    return float(value)


def _score(name: str, replies: list[_Reply]) -> FederatedScore:
    """Return the mean of one metric; fsum, so that the order of arrival can't show."""
    doubtful = doubtful_counts(replies)
    if doubtful:
        _log.warning(
            "%r: all nodes count alike: the number of examples of %s can't be right.",
            harmless(name, 60),
            ", ".join(sorted(doubtful)),
        )
    counts = example_counts(replies, "capped-examples")
    total = math.fsum(n * each.metrics[name] for n, each in zip(counts, replies, strict=True))
    images = None if doubtful else sum(each.num_examples or 0 for each in replies)
    return FederatedScore(total / sum(counts), nodes=len(replies), images=images)
