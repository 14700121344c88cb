"""Image folders: class/image, or domain/class/image, each also below the folders of splits."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedmitr_app.config import DataConfig
from fedmitr_app.errors import DataError
from fedmitr_app.partitions.headers import MOST_HEADERS, photographs_lost
from fedmitr_app.partitions.images import FORMATS, SUFFIXES
from fedmitr_app.partitions.labels import Indices
from fedmitr_app.partitions.names import some_names
from fedmitr_app.partitions.rows import Reading, Rows, make_rows
from fedmitr_app.partitions.split_files import Named, SplitFiles, part
from fedmitr_app.partitions.splits import TRAIN, called_like_a_split, require_no_splits, split_of
from fedmitr_app.partitions.tree import Tree

_WANTED = f"images ({', '.join(FORMATS)}) as class/image or as domain/class/image"
_TABLES = (".csv", ".tsv", ".xlsx")


def read_image_folder(data: DataConfig) -> Reading:
    """Return the training rows, and the test rows where there are any.

    Folders that are called like splits (see ``splits.py``) and hold class folders are splits;
    ``data.test_path`` goes before them. A domain may lack some of the classes.

    Raises
    ------
    DataError
        For a missing folder, images that don't all stand in class folders, or splits that
        nobody can tell apart.
    """
    train, test, notes = part(
        data, SUFFIXES, _splits, wanted=_WANTED, others_train=False, labelled=_labelled
    )
    read = _read(train, notes)
    _require_classes_below_domains(read.train)
    rows = read.train
    some = rows.index[np.linspace(0, len(rows) - 1, min(len(rows), MOST_HEADERS), dtype=np.int64)]
    lost = photographs_lost(rows.cells(some), data, rows.where)
    return replace(
        read,
        test=(lambda: _read(test).train) if test else None,
        warning=" ".join(filter(None, (read.warning, lost))),
    )


def _splits(tree: Tree) -> dict[Path, Named]:
    names = {path: tree.parts(path) for path in tree.files}
    tops = {below[0] for below in names.values() if len(below) > 1}
    # A folder with images right inside is a class, even if it is called "test".
    deep = {below[0] for below in names.values() if len(below) > 2}
    split_at = {top: split_of(top, tree.where) for top in (tops if deep else ())}
    # Beside no training folder, "dev site" is a domain as "main site" is.
    if TRAIN not in split_at.values():
        split_at = {top: split_at[top] for top in split_at if called_like_a_split(top)}
    if not any(split_at.get(top) for top in deep):
        split_at = {}
    return {path: Named(split_at.get(at[0], ""), at[0]) for path, at in names.items()}


def _below_split(images: SplitFiles) -> list[tuple[str, ...]]:
    return [images.tree.parts(path)[1 if images.split else 0 :] for path in images.files]


def _labelled(images: SplitFiles) -> bool:
    return any(len(below) > 1 for below in _below_split(images))


def _read(images: SplitFiles, notes: tuple[str, ...] = ()) -> Reading:
    """Return one split's rows as those to train on."""
    where, files, names = images.where, images.files, _below_split(images)
    depths = Counter(map(len, names))
    if images.tree.single or depths.keys() not in ({2}, {3}):
        start = "is a file: it must" if images.tree.single else "must"
        odd = "" if images.tree.single else _odd_one_out(names, depths, images.split)
        raise DataError(
            f"{where} {start} be a folder that holds {_WANTED}{odd}.",
            public="its images don't stand in class folders: its own log says which.",
        )
    for path, below in zip(files, names, strict=True):
        if not all(map(_is_utf8, below)):
            raise DataError(f"{where}: the name {str(path)!r} is not UTF-8: rename it.")
    classes = [below[-2] for below in names]
    domains = [below[0] for below in names] if 3 in depths else None
    called = [
        f"{some_names(called)} taken for {f'a {one}' if len(called) == 1 else what}"
        for one, what, found in (("domain", "domains", domains), ("class", "classes", classes))
        if (called := require_no_splits(set(found or ()), what, where))
    ]

    def cells(rows: Indices) -> Any:
        return (files[row] for row in rows)

    rows = make_rows(classes, cells, where, domains=domains)
    doubt = _doubt(rows, images.tree)
    unread = ["labels in tables not read"] if doubt else []
    return Reading(rows, notes=(*notes, *called, *unread), warning=doubt)


def _require_classes_below_domains(rows: Rows) -> None:
    """Refuse class/images/image: what would be domains are the classes."""
    if len(rows.domain_names) > 1 and len(rows.names) == 1:
        raise DataError(
            f"{rows.where} holds a single class, {rows.names[0]!r}, in {len(rows.domain_names)} "
            f"domains ({some_names(rows.domain_names, 3)}): if these are the classes, as in "
            "class/images/image, move the images up into their class's folder.",
            public="its data hold a single class in several domains: its own log names them.",
        )


def _doubt(rows: Rows, tree: Tree) -> str:
    """Tell of labels in tables, where folders look like no classes: one, or parts of a whole."""
    tables = [suffix for suffix in _TABLES if tree.skipped[suffix]]
    alike = {re.sub(r"\d+", "", name) for name in rows.names}
    if not tables or len(alike) > 1 or len(rows.names) > 1 and alike == {""}:
        return ""
    return (
        f"{rows.where}: labels in a {tables[0]} file are not read, only those that folders name "
        f"({some_names(rows.names, 3)}); lay the images out as class/image if these are no classes."
    )


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _odd_one_out(names: list[tuple[str, ...]], depths: Counter[int], split: str) -> str:
    if depths.keys() == {1}:
        advice = (
            ""
            if split in ("", TRAIN)
            else ("; set data.path to the training folder, and data.test-path to labelled images")
        )
        return f": {names[0][0]!r} stands in no folder that names its class{advice}"
    rarest = min(depths, key=lambda depth: (depth in (2, 3), depths[depth]))
    odd = "/".join(next(below for below in names if len(below) == rarest))
    if len(depths) > 1:
        return f", all the same way, unlike {odd!r}"
    return (
        f", but they stand {rarest - 1} folders deep, as {odd!r}: point the setting at the folder "
        "that holds the splits or the classes"
    )
