"""A client's labels, numbered as the server numbers its classes."""

import dataclasses

import torch

from fedmitr_app.errors import DataError
from fedmitr_app.partitions.images import ImageSet
from fedmitr_app.partitions.names import count_of, join_names


def align_labels(shard: ImageSet, names: tuple[str, ...]) -> ImageSet:
    """Return the shard with its labels numbered as the server numbers its classes.

    A node's own folder may lack some classes, which would shift the others' numbers.

    Raises
    ------
    DataError
        If the shard has images of a class that the server doesn't know.
    """
    if shard.class_names == names:
        return shard
    present = set(shard.labels.tolist())
    unknown = [shard.class_names[label] for label in sorted(present)]
    unknown = [name for name in unknown if name not in names]
    if unknown:
        theirs = f"which the server's model does not know: its classes are {join_names(names[:10])}"
        raise DataError(
            f"This client holds images of {join_names(unknown[:5])}, {theirs}.",
            public=f"it holds images of {count_of(len(unknown), 'class')}, {theirs}.",
        )
    numbers = [names.index(name) if name in names else -1 for name in shard.class_names]
    labels = torch.tensor(numbers, dtype=torch.int64)[shard.labels]
    return dataclasses.replace(shard, labels=labels, class_names=names)
