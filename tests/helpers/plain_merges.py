"""The plain average, without any comparison of the uploads."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedmitr_app.merging import Mergeable
from fedmitr_app.merging import average as average_of
from fedmitr_app.uploads import Upload, WeightCheck


def average(
    uploads: Sequence[Upload],
    weights: str = "num-examples",
    weighed: Sequence[WeightCheck] | None = None,
    initial: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Average uploads, perhaps without those that are unfit."""
    return average_of(Mergeable.of(uploads, initial or {}, weighed, weights))
