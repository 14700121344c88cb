"""What became of a round's replies."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedmitr_app.errors import UploadError
from fedmitr_app.uploads.example_weights import example_counts
from fedmitr_app.uploads.metadata import check_client_key
from fedmitr_app.uploads.spool import Rejection
from fedmitr_app.uploads.upload import Upload
from fedmitr_app.utils.text import harmless

_SHOWN_REASONS = 5
_MOST = 1e12  # seconds, nodes: far above any


@dataclass(frozen=True)
class RoundOutcome:
    """One round, for the report. Nothing here depends on the order of arrival.

    Parameters
    ----------
    accepted : tuple[Upload, ...]
        Sorted by client key; their weights files last as long as the run folder.
    rejected : tuple[Rejection, ...]
        Replies that could not be used, with reasons, sorted.
    no_data : tuple[Rejection, ...]
        Replies that said they hold no data, sorted.
    asked : int
        Nodes that were asked to train.
    missing : tuple[Rejection, ...]
        Nodes that gave no reply in time, sorted.
    excluded : tuple[Rejection, ...]
        Clients whose uploads were left out by ``server.exclude-clients``, sorted.
    repeated : int
        Replies that only repeated another, and were dropped.
    collect_seconds, fuse_seconds : float
        Wall time of the two halves of the round; the first holds the clients' training.
    """

    accepted: tuple[Upload, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    no_data: tuple[Rejection, ...] = ()
    asked: int = 0
    missing: tuple[Rejection, ...] = ()
    excluded: tuple[Rejection, ...] = ()
    repeated: int = 0
    collect_seconds: float = 0.0
    fuse_seconds: float = 0.0

    def sentence(self) -> str:
        """Return the round in one line."""
        parts = [f"{len(self.accepted)} upload(s) accepted of {self.asked} asked"]
        for count, word in (
            (len(self.rejected), "rejected"),
            (len(self.no_data), "without data"),
            (len(self.missing), "missing"),
            (len(self.excluded), "excluded"),
            (self.repeated, "repeated"),
        ):
            if count:
                parts.append(f"{count} {word}")
        return ", ".join(parts)

    def reasons(self) -> str:
        """Return the first few reasons why uploads are lacking, in one line."""
        lacking = self.rejected + self.missing
        shown = [
            f"{rejection.client}: {rejection.reason.rstrip('.')}"
            for rejection in lacking[:_SHOWN_REASONS]
        ]
        more = len(lacking) - len(shown)
        return "; ".join(shown + ([f"and {more} more"] if more else []))

    def metrics(self) -> dict[str, float]:
        """Return the mean of what the accepted clients measured, weighted by examples."""
        counts = example_counts(self.accepted)
        return weighted_metrics(
            zip(counts, [upload.metrics for upload in self.accepted], strict=True)
        )


def round_facts(outcome: RoundOutcome) -> dict[str, Any]:
    """Return a round as JSON can hold it; its uploads have manifests of their own."""
    facts = dataclasses.asdict(dataclasses.replace(outcome, accepted=()))
    del facts["excluded"]  # which the next run may choose otherwise
    return facts | {"accepted": {upload.client: upload.digest for upload in outcome.accepted}}


def round_of(facts: Any) -> tuple[RoundOutcome, dict[str, str]]:
    """Return the round of :func:`round_facts`, and its uploads' digests by client key.

    Raises
    ------
    ValueError
        If it is none: the facts may come from somebody else.
    """
    names = {field.name for field in dataclasses.fields(RoundOutcome)} - {"excluded"}
    if not isinstance(facts, dict) or facts.keys() != names:
        raise ValueError("it does not have the fields of a round")
    accepted = facts["accepted"]
    if not isinstance(accepted, dict) or not all(isinstance(d, str) for d in accepted.values()):
        raise ValueError("it does not name uploads by their digests")
    if len(set(accepted.values())) < len(accepted):
        raise ValueError("it has one upload under several names")
    for client in accepted:
        try:
            check_client_key(client.partition("#")[0])
        except UploadError as error:
            raise ValueError(str(error)) from error
    counts = {name: _number(facts[name], int) for name in ("asked", "repeated")}
    seconds = {name: _number(facts[name], float) for name in ("collect_seconds", "fuse_seconds")}
    replies: dict[str, Any] = {n: _replies(facts[n]) for n in ("rejected", "no_data", "missing")}
    return RoundOutcome(**counts, **seconds, **replies), accepted


def _number(value: Any, kind: type) -> Any:
    plain = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not plain or not 0 <= value <= _MOST:
        raise ValueError(f"it has {harmless(repr(value), 40)} where a number is needed")
    return kind(value)


def _replies(rows: Any) -> tuple[Rejection, ...]:
    names = {field.name for field in dataclasses.fields(Rejection)}
    if not isinstance(rows, list) or not all(
        isinstance(row, dict)
        and row.keys() == names
        and isinstance(row["client"], str)
        and isinstance(row["reason"], str)
        and isinstance(row["node"], int)
        for row in rows
    ):
        raise ValueError("its replies are no list of clients, reasons and nodes")
    return tuple(Rejection(**row) for row in rows)


def weighted_metrics(pairs: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Return the weighted mean of each metric over those that report it."""
    terms: dict[str, list[float]] = {}
    weights: dict[str, int] = {}
    for weight, metrics in pairs:
        for name, value in metrics.items():
            terms.setdefault(name, []).append(weight * value)
            weights[name] = weights.get(name, 0) + weight
    # fsum rounds once, so that the order of arrival can't show in the last digit.
    return {name: math.fsum(terms[name]) / weights[name] for name in sorted(terms)}
