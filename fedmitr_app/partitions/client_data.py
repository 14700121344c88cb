"""What one client holds, and what everyone is tested on, as tensors."""

import logging

import numpy as np
import torch
from numpy.typing import NDArray

from fedmitr_app.config import DataConfig, PartitionConfig
from fedmitr_app.errors import ConfigError
from fedmitr_app.partitions.images import ImageSet
from fedmitr_app.partitions.names import count_of
from fedmitr_app.partitions.partitioners import deal
from fedmitr_app.partitions.rows import Rows
from fedmitr_app.partitions.sources import Source, load_source
from fedmitr_app.utils.randomness import generator

_log = logging.getLogger(__name__)


def load_shard(
    data: DataConfig,
    partition: PartitionConfig,
    partition_id: int,
    num_partitions: int,
    seed: int,
) -> ImageSet:
    """Return one client's training images; only those are decoded, nothing is cached.

    Parameters
    ----------
    data, partition : DataConfig, PartitionConfig
        Which images there are, and how they are dealt.
    partition_id, num_partitions : int
        Which client, of how many.
    seed : int
        The run's seed; it alone decides who gets what.

    Returns
    -------
    ImageSet
        Possibly empty.

    Raises
    ------
    DataError, ConfigError
        If the dataset can't be read, or not be dealt that way.
    """
    if not 0 <= partition_id < num_partitions:
        raise ConfigError.bad_value(
            "partition-id", partition_id, f"from 0 to num-partitions - 1 = {num_partitions - 1}"
        )
    source = load_source(data, domains=partition.kind == "natural")
    mine = source.train.take(deal(source.train, partition, num_partitions, seed)[partition_id])
    classes = count_of(len(np.unique(mine.labels)), "class")
    are = "is" if len(mine) == 1 else "are"
    whose = f"{count_of(len(mine), 'image')} of {classes} {are} this client's, of {source.read}"
    return _image_set(mine, data, source, whose)


def hold_out(shard: ImageSet, share: float, seed: int, client: str) -> tuple[ImageSet, ImageSet]:
    """Split a client's images into those that it trains on, and a share that it doesn't.

    The same every time for one seed and client key; at least one image is left to train on.
    """
    order = torch.randperm(len(shard), generator=generator(seed, client, "hold-out"))
    held = min(round(share * len(shard)), max(len(shard) - 1, 0))
    if held == 0:
        return shard, shard.take(order[:0])
    return shard.take(order[held:].sort().values), shard.take(order[:held].sort().values)


def load_test_set(data: DataConfig) -> ImageSet:
    """Return the held-out images, the same in every run whatever its seed.

    Raises
    ------
    DataError, ConfigError
        If the dataset can't be read.
    """
    source = load_source(data)
    return _image_set(source.test, data, source, source.read)


def class_names(data: DataConfig) -> tuple[str, ...]:
    """Return the dataset's classes, in the order of their indices; decodes no image."""
    return load_source(data).class_names


def label_matrix(
    data: DataConfig, partition: PartitionConfig, num_partitions: int, seed: int
) -> NDArray[np.int64]:
    """Return how many images of each class each client holds; decodes no image.

    Returns
    -------
    NDArray[np.int64]
        ``[clients, classes]``.
    """
    source = load_source(data, domains=partition.kind == "natural")
    classes = len(source.class_names)
    dealt = deal(source.train, partition, num_partitions, seed)
    return np.stack([np.bincount(source.train.labels[rows], minlength=classes) for rows in dealt])


def _image_set(rows: Rows, data: DataConfig, source: Source, read: str) -> ImageSet:
    if source.warning:
        _log.warning("%s", source.warning)
    return ImageSet(
        images=torch.from_numpy(rows.pixels(data.stored_size or data.image_size, data.channels)),
        labels=torch.from_numpy(rows.labels),
        class_names=source.class_names,
        read=read,
    )
