"""A round whose uploads are averaged, whatever their names: what collects them is tested."""

from fedmitr_app.merging import Mergeable, average
from fedmitr_app.strategies import UploadRound
from fedmitr_app.uploads import check_weights


class AveragingRound(UploadRound):
    """Weights by ``weights``; remembers what everybody began with."""

    def __init__(self, *, weights="num-examples", **one_shot):
        super().__init__(**one_shot)
        self.weights, self._initial = weights, {}

    def configure_train(self, server_round, arrays, config, grid):
        self._initial = dict(arrays.to_torch_state_dict())
        return super().configure_train(server_round, arrays, config, grid)

    def fuse(self, uploads):
        weighed = check_weights(uploads, self._initial)
        pairs = zip(uploads, weighed, strict=True)
        self.left_out = frozenset(upload.client for upload, found in pairs if found.unfit)
        return average(Mergeable.of(uploads, self._initial, weighed, self.weights))
