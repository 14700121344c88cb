"""What a client holds: sources of images, and how they are dealt to clients."""

from fedmitr_app.partitions.images import ImageSet
from fedmitr_app.partitions.shards import (
    class_names,
    hold_out,
    label_matrix,
    load_shard,
    load_test_set,
)

__all__ = ["ImageSet", "class_names", "hold_out", "label_matrix", "load_shard", "load_test_set"]
