"""Labelled rows of a dataset, with the images still encoded until somebody asks for them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedmitr_app.errors import ConfigError, DataError
from fedmitr_app.partitions.images import decode_all
from fedmitr_app.partitions.labels import Column, Indices, encode
from fedmitr_app.partitions.names import some_names
from fedmitr_app.utils.randomness import generator

# Which rows are held out, and which are kept of too many, never depends on the run's seed:
# runs that differ in seed only are compared on the same test images.
FIXED_SEED = 0


@dataclass(frozen=True)
class Rows:
    """Some rows of one split.

    Parameters
    ----------
    labels : NDArray[np.int64]
        One class per row, an index into ``names``.
    names : tuple[str, ...]
        The classes, as :func:`clean_name` writes them, all different.
    cells : Callable
        Takes ascending row numbers of the source and yields their encoded images.
    where : str
        The source in words, for messages, such as ``data.path = 'cifar10'``.
    index : NDArray[np.int64]
        The rows' numbers in the source, ascending.
    domains : NDArray[np.int64] | None
        One domain per row, an index into ``domain_names``, where the source has them.
    domain_names : tuple[str, ...]
        In the order that clients are numbered in where each is a domain.
    roots : tuple[Path, ...]
        Folders that a path in a cell may lead into.
    """

    labels: Indices
    names: tuple[str, ...]
    cells: Callable[[Indices], Iterable[Any]]
    where: str
    index: Indices
    domains: Indices | None = None
    domain_names: tuple[str, ...] = ()
    roots: tuple[Path, ...] = ()

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
            self.cells(self.index),
            len(self),
            size=size,
            channels=channels,
            where=self.where,
            roots=self.roots,
        )


@dataclass(frozen=True)
class Reading:
    """What a source holds, and in a few words each what else was seen there."""

    train: Rows
    test: Callable[[], Rows] | None = None
    """Reads the source's own test rows, if it has any."""
    notes: tuple[str, ...] = ()
    warning: str = ""
    """What is odd about it, if anything is, in a sentence."""


def make_rows(
    labels: Column,
    cells: Callable[[Indices], Iterable[Any]],
    where: str,
    *,
    names: Sequence[str] | None = None,
    domains: Column | None = None,
    roots: tuple[Path, ...] = (),
) -> Rows:
    """Return all rows of a split.

    Parameters
    ----------
    labels : Column
        One per row: words, or whole numbers.
    names : Sequence[str] | None
        Class names that whole-number labels point into, where the source has them.
    domains : Column | None
        One per row, likewise.

    Raises
    ------
    DataError
        If a row has no label, or labels are neither whole numbers nor words.
    """
    if len(labels) == 0:
        raise DataError(
            f"{where} holds no images: point it at some.", public="its data hold no images."
        )
    classes = encode(labels, f"{where}: data.label-column", names)
    parts = None if domains is None else encode(domains, f"{where}: data.domain-column")
    return Rows(
        labels=classes.codes,
        names=classes.names,
        cells=cells,
        where=where,
        index=np.arange(len(labels)),
        domains=None if parts is None else parts.codes,
        domain_names=() if parts is None else parts.names,
        roots=roots,
    )


def require_column(setting: str, name: str, columns: Sequence[str], where: str) -> str:
    """Return ``name`` if it is one of the columns.

    Raises
    ------
    ConfigError
        If it isn't.
    """
    if name not in columns:
        raise ConfigError.bad_value(
            setting,
            name,
            f"a column of {where}: {some_names(columns, 50)}",
            public="a column of its data, whose own log names them",
        )
    return name


def number_as(rows: Rows, class_names: tuple[str, ...]) -> Rows:
    """Return test rows with their labels numbered as the training images' classes are.

    Raises
    ------
    DataError
        For a class that the training images don't have.
    """
    index_of = {name: index for index, name in enumerate(class_names)}
    numbers = np.array([index_of.get(name, -1) for name in rows.names], dtype=np.int64)
    labels = numbers[rows.labels]
    unknown = rows.labels[labels < 0]
    if len(unknown):
        odd = rows.names[unknown.min()]
        near = [name for name in class_names if name.casefold() == odd.casefold()]
        but = f"; {near[0]!r} differs in capitals only" if near else ""
        raise DataError(
            f"{rows.where} holds the class {odd!r}, which the training images don't have: theirs "
            f"are {some_names(class_names)}{but}; use a test set with the same classes."
        )
    return replace(rows, labels=labels, names=class_names)


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
