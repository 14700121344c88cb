"""What became of a round's replies."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedmitr_app.uploads.averaging import example_counts
from fedmitr_app.uploads.spool import Rejection
from fedmitr_app.uploads.upload import Upload

_SHOWN_REASONS = 5


@dataclass(frozen=True)
class RoundOutcome:
    """One round, for the report. Nothing here depends on the order of arrival.

    Parameters
    ----------
    accepted : tuple[Upload, ...]
        Sorted by client key; their weights files last as long as the run folder.
    rejected : tuple[Rejection, ...]
        Replies that could not be used, with reasons, sorted.
    no_data : tuple[str, ...]
        Keys of the clients that said they hold no data, sorted.
    asked : int
        Nodes that were asked to train.
    missing : tuple[Rejection, ...]
        Nodes that gave no reply in time, sorted.
    excluded : tuple[str, ...]
        Keys of the clients whose uploads were left out by ``server.exclude-clients``, sorted.
    repeated : int
        Replies that only repeated another, and were dropped.
    collect_seconds, fuse_seconds : float
        Wall time of the two halves of the round; the first holds the clients' training.
    """

    accepted: tuple[Upload, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    no_data: tuple[str, ...] = ()
    asked: int = 0
    missing: tuple[Rejection, ...] = ()
    excluded: tuple[str, ...] = ()
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
        return weighted_metrics(zip(counts, [upload.metrics for upload in self.accepted]))


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
