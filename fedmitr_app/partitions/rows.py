"""Labelled rows of a dataset, with the images still encoded until somebody asks for them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedmitr_app.errors import ConfigError, DataError
from fedmitr_app.partitions.images import decode_all
from fedmitr_app.randomness import generator

Indices = NDArray[np.int64]

# Which rows are held out, and which are kept of too many, never depends on the run's seed:
# runs that differ in seed only are compared on the same test images.
FIXED_SEED = 0


@dataclass(frozen=True)
class Rows:
    """Some rows of one split.

    Parameters
    ----------
    labels : NDArray
        One class per row: a word, or a whole number.
    cells : Callable
        Takes ascending row numbers of the source and yields their encoded images.
    where : str
        The source in words, for messages, such as ``data.path = 'cifar10'``.
    index : NDArray[np.int64]
        The rows' numbers in the source, ascending.
    names : tuple[str, ...] | None
        Class names that whole-number labels point into, where the source has them.
    domains : NDArray | None
        One domain per row, where the source has them.
    """

    labels: NDArray[Any]
    cells: Callable[[Indices], Iterable[Any]]
    where: str
    index: Indices
    names: tuple[str, ...] | None = None
    domains: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Indices) -> "Rows":
        """Return the given rows, in ascending order."""
        rows = np.sort(rows)
        return replace(
            self,
            labels=self.labels[rows],
            index=self.index[rows],
            domains=None if self.domains is None else self.domains[rows],
        )

    def pixels(self, size: int, channels: int) -> NDArray[np.uint8]:
        """Decode these rows' images, ``[N, channels, size, size]``."""
        return decode_all(
            self.cells(self.index), len(self), size=size, channels=channels, where=self.where
        )


def make_rows(
    labels: Sequence[Any],
    cells: Callable[[Indices], Iterable[Any]],
    where: str,
    *,
    names: Sequence[str] | None = None,
    domains: Sequence[Any] | None = None,
) -> Rows:
    """Return all rows of a split.

    Raises
    ------
    DataError
        If a row has no label, or labels are neither whole numbers nor words.
    """
    if len(labels) == 0:
        raise DataError(f"{where} holds no images: point it at some.")
    return Rows(
        labels=_column(labels, f"{where}: data.label-column"),
        cells=cells,
        where=where,
        index=np.arange(len(labels)),
        names=tuple(names) if names is not None else None,
        domains=None if domains is None else _column(domains, f"{where}: data.domain-column"),
    )


def _column(values: Sequence[Any], setting: str) -> NDArray[Any]:
    # The dtype can't tell: numpy would turn a missing value among words into a word.
    kinds = {type(value) for value in values}
    if not (kinds <= {int, bool, np.int64} or kinds <= {str, np.str_}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(
            f"{setting} must name a column with a whole number or a word in every row, "
            f"but it holds {found}."
        )
    return np.asarray(values)


def require_column(setting: str, name: str, columns: Sequence[str], where: str) -> str:
    """Return ``name`` if it is one of the columns.

    Raises
    ------
    ConfigError
        If it isn't.
    """
    if name not in columns:
        known = ", ".join(repr(column) for column in columns)
        raise ConfigError.bad_value(setting, name, f"a column of {where}: {known}")
    return name


def encode_labels(rows: Rows, class_names: tuple[str, ...] | None) -> tuple[Rows, tuple[str, ...]]:
    """Replace labels by indices into the class names.

    Parameters
    ----------
    rows : Rows
        With labels as the source gives them.
    class_names : tuple[str, ...] | None
        The training split's, or ``None`` to take them from ``rows``: the source's own
        list, else its labels in order.

    Raises
    ------
    DataError
        For a label outside the list of names: an unlabelled row, or a class that only
        the test split has.
    """
    if rows.names is not None:
        if rows.labels.min() < 0 or rows.labels.max() >= len(rows.names):
            raise DataError(
                f"{rows.where} holds labels outside its {len(rows.names)} classes (-1 means "
                "unlabelled): use a labelled split, or set data.label-column to another column."
            )
        words = np.asarray(rows.names)[rows.labels]
        known = class_names or rows.names
    else:
        words = rows.labels.astype(str)
        known = class_names or tuple(np.unique(rows.labels).astype(str).tolist())
    index_of = {name: index for index, name in enumerate(known)}
    unknown = sorted(set(words.tolist()) - index_of.keys())
    if unknown:
        raise DataError(
            f"{rows.where} holds the class {unknown[0]!r}, which the training images don't have: "
            f"theirs are {_some(known)}; use a test set with the same classes."
        )
    labels = np.fromiter((index_of[word] for word in words.tolist()), np.int64, len(words))
    return replace(rows, labels=labels, names=known), known


def stratified_order(labels: NDArray[Any], purpose: str) -> Indices:
    """Return a fixed order of rows whose every prefix has the classes in proportion.

    Parameters
    ----------
    labels : NDArray
        ``[N]``.
    purpose : str
        Different purposes get different orders.

    Returns
    -------
    NDArray[np.int64]
        A permutation of ``0..N-1``. A row that is the r-th of its class's n (in a fixed
        random order) stands at about r/n, so prefixes are nested and stratified.
    """
    draws = generator(FIXED_SEED, "data", purpose)
    shuffle = torch.randperm(len(labels), generator=draws).numpy()
    _, classes, counts = np.unique(labels[shuffle], return_inverse=True, return_counts=True)
    by_class = np.argsort(classes, kind="stable")
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(labels))
    rank[by_class] = np.arange(len(labels)) - starts[classes[by_class]]
    # Classes take turns in a random order, or short prefixes would favour the first ones.
    turn = torch.randperm(len(counts), generator=draws).numpy() / len(counts)
    return shuffle[np.argsort((rank + turn[classes]) / counts[classes], kind="stable")]


def limit(rows: Rows, most: int, purpose: str) -> Rows:
    """Keep at most ``most`` rows (0: all), the same in every run, classes in proportion."""
    if not most or len(rows) <= most:
        return rows
    return rows.take(stratified_order(rows.labels, purpose)[:most])


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")
