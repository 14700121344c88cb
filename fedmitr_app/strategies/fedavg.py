"""One round of federated averaging: the comparator that every one-shot method must beat."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fedmitr_app.errors import ConfigError
from fedmitr_app.strategies.one_shot import OneShotStrategy
from fedmitr_app.uploads import Upload, average
from fedmitr_app.uploads.averaging import WEIGHTINGS


class OneShotFedAvg(OneShotStrategy):
    """Average the uploads (McMahan et al., 2017), once.

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

    def fuse(self, uploads: Sequence[Upload]) -> dict[str, Tensor]:
        """Return the average, summed in float64 with flat memory."""
        return average(uploads, self.weights)
