"""One round of federated averaging: the comparator that every one-shot method must beat."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from fedmitr_app.errors import ConfigError
from fedmitr_app.merging import Mergeable, average
from fedmitr_app.strategies.one_shot import OneShotStrategy
from fedmitr_app.uploads import Upload, compare
from fedmitr_app.uploads.shares import WEIGHTINGS

_log = logging.getLogger(__name__)


class OneShotFedAvg(OneShotStrategy):
    """Average the uploads (McMahan et al., 2017), once.

    Without those whose weights can't be averaged with the others', for which their sizes and order
    beside the initial arrays' speak, and with arrays that were scaled scaled back; a warning names
    them, and ``left_out`` has the former's keys.

    Parameters
    ----------
    weights : {"num-examples", "uniform"}
        What each upload counts for.
    **one_shot
        As in :class:`OneShotStrategy`.
    """

    def __init__(self, *, weights: str = "num-examples", **one_shot: Any) -> None:
        super().__init__(**one_shot)
        if weights not in WEIGHTINGS:
            allowed = f"one of {', '.join(map(repr, WEIGHTINGS))}"
            raise ConfigError.bad_value("weights", weights, allowed)
        self.weights = weights
        self._initial: dict[str, Tensor] | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what everybody began with, and ask every node to train from it."""
        self._initial = dict(arrays.to_torch_state_dict())
        return super().configure_train(server_round, arrays, config, grid)

    def fuse(self, uploads: Sequence[Upload]) -> dict[str, Tensor]:
        """Return the average, summed in float64 with flat memory."""
        initial = self._initial or {}
        weighed = compare(uploads, initial)
        pairs = [*zip(uploads, weighed, strict=True)]
        self.left_out = frozenset(upload.client for upload, found in pairs if found.unfit)
        for upload, found in pairs:
            for reason in found.reasons:
                _log.warning("%s is suspicious: %s.", upload.client, reason)
        return average(Mergeable.of(uploads, initial, weighed, self.weights))
