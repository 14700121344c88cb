"""The uploads' weights merged into one model, without data."""

from fedmitr_app.merging.averaging import average, class_wise_head
from fedmitr_app.merging.knowledge import class_weights, row_changes
from fedmitr_app.merging.merge import merge
from fedmitr_app.merging.mergeable import Mergeable
from fedmitr_app.merging.stretching import own_length, stretch
from fedmitr_app.merging.ties import ties

__all__ = [
    "Mergeable",
    "average",
    "class_weights",
    "class_wise_head",
    "merge",
    "own_length",
    "row_changes",
    "stretch",
    "ties",
]
