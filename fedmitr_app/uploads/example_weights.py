"""Say what each upload counts for."""

import statistics
from collections.abc import Sequence
from typing import Protocol

from fedmitr_app.errors import ConfigError, UploadError
from fedmitr_app.uploads.upload import Upload

WEIGHTINGS = ("num-examples", "capped-examples", "uniform")
MOST_EXAMPLES = 1000
"""Times the median client's: above it a number of examples is not believed (choice)."""
CAP = 3
"""Times the median client's: what a client counts for at most where claims are doubted (choice;
docs/explanation/method.md has what it costs and saves)."""


class Counted(Protocol):
    """What says of itself how many examples it rests on: an upload, or a node's evaluation."""

    @property
    def client(self) -> str:
        """Who says so."""

    @property
    def num_examples(self) -> int | None:
        """How many; None if what is said can't be."""


def client_shares(uploads: Sequence[Upload], weights: str = "num-examples") -> list[float]:
    """Return each upload's share of the average; the shares sum to 1."""
    if weights not in WEIGHTINGS:
        allowed = f"one of {', '.join(map(repr, WEIGHTINGS))}"
        raise ConfigError.bad_value("weights", weights, allowed)
    if not uploads:
        raise UploadError("There is no upload to average.")
    counts = example_counts(uploads, weights)
    return [count / sum(counts) for count in counts]


def example_counts(uploads: Sequence[Counted], weights: str = "num-examples") -> list[int]:
    """Return each upload's number of examples; 1 for all if one of them can't be right.

    As ``capped-examples`` nobody's is more than ``CAP`` times the (lower) median: nothing
    proves them. As ``uniform`` each is 1.
    """
    if weights == "uniform" or doubtful_counts(uploads):
        return [1] * len(uploads)
    counts = [upload.num_examples or 0 for upload in uploads]
    if weights == "capped-examples" and counts:
        most = CAP * statistics.median_low(counts)
        counts = [min(count, most) for count in counts]
    return counts


def doubtful_counts(uploads: Sequence[Counted]) -> list[str]:
    """Name the clients whose number of examples can't be right.

    That is one which was refused as it came, or one ``MOST_EXAMPLES`` times the (lower) median:
    it would decide everything alone.
    """
    known = [each.num_examples for each in uploads if each.num_examples is not None]
    most = MOST_EXAMPLES * statistics.median_low(known) if known else 0
    return [
        each.client for each in uploads if each.num_examples is None or each.num_examples > most
    ]
