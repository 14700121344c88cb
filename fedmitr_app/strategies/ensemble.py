"""The bare ensemble: keep every upload; the ceiling that distillation aims at."""

import logging
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from fedmitr_app.strategies.one_shot import OneShotStrategy
from fedmitr_app.strategies.records import to_array_record
from fedmitr_app.uploads import Upload

_log = logging.getLogger(__name__)


class BareEnsemble(OneShotStrategy):
    """Return all uploads side by side instead of one model.

    The resulting arrays are named ``<client key>/<parameter>``: K models in one
    record, which :func:`split_ensemble` takes apart. They don't fit the clients'
    model, so that clients can't evaluate them; how their outputs are combined is the
    teacher's matter.
    """

    def fuse(self, uploads: Sequence[Upload]) -> dict[str, Tensor]:
        """Return every upload's arrays under its client key."""
        return {
            f"{upload.client}/{name}": value
            for upload in uploads
            for name, value in upload.load_state().items()
        }

    def pack(self, fused: Mapping[str, Tensor]) -> ArrayRecord:
        """Return the arrays as they are; their names are not those of the initial ones."""
        return to_array_record(fused)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: a client's model can't load an ensemble."""
        if self.federated_evaluation or self.send_model:
            _log.warning("An ensemble is no single model: it is neither sent nor evaluated.")
        return []


def split_ensemble(arrays: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return client key to state dict, from the names that :class:`BareEnsemble` gives.

    Parameter names hold no slash, client keys may: the last slash separates them.
    """
    models: dict[str, dict[str, Tensor]] = {}
    for name, value in arrays.items():
        client, _, parameter = name.rpartition("/")
        models.setdefault(client, {})[parameter] = value
    return models
