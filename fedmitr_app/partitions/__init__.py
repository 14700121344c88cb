"""What a client holds: sources of images, and how they are dealt to clients."""

from fedmitr_app.partitions.alignment import align_labels
from fedmitr_app.partitions.client_data import (
    class_names,
    hold_out,
    label_matrix,
    load_shard,
    load_test_set,
)
from fedmitr_app.partitions.images import ImageSet
from fedmitr_app.partitions.names import clean_name, join_names, split_names

__all__ = [
    "ImageSet",
    "align_labels",
    "class_names",
    "clean_name",
    "hold_out",
    "join_names",
    "label_matrix",
    "load_shard",
    "load_test_set",
    "split_names",
]
