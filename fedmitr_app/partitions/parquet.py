"""Local parquet files, read without a copy on disk: the label column whole, images by row group.

Other columns than those two (and the domains', where they are wanted) are never touched.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedmitr_app.config import DataConfig
from fedmitr_app.errors import DataError
from fedmitr_app.partitions.columns import (
    class_names_of,
    declared_features,
    find_image_column,
    is_image,
)
from fedmitr_app.partitions.labels import Indices, alike, has_labels, is_words, require_kind
from fedmitr_app.partitions.rows import Reading, Rows, make_rows, require_column
from fedmitr_app.partitions.split_files import Named, SplitFiles, part
from fedmitr_app.partitions.splits import TRAIN, kinds_of, split_of
from fedmitr_app.partitions.tree import Tree
from fedmitr_app.utils.files import reason_of

SUFFIXES = frozenset((".parquet",))
MOST_ROWS = 50_000_000
"""Of a dataset: a file of a few kilobytes may claim any number, and each takes 40 bytes here."""
ROWS_AT_ONCE = 8
"""Of images: what a column claims may be far larger than its file."""


def read_parquet(data: DataConfig, domains: bool) -> Reading:
    """Return the training rows, and the test rows where there are any.

    ``data.path`` is a file, or a folder: there, files that are called like a split, or stand in a
    folder that is (see ``splits.py``), are that split; where none is called like the training
    split, all others are. ``data.test_path`` goes before that.

    Parameters
    ----------
    domains : bool
        Whether to read the domain column, if there is one.

    Raises
    ------
    DataError, ConfigError
        For a missing path, a file that isn't parquet, or a missing column.
    """
    train, test, notes = part(
        data,
        SUFFIXES,
        _splits,
        wanted="*.parquet files",
        others_train=True,
        labelled=partial(_labelled, column=data.label_column),
    )
    tests = partial(_rows, test, data, domains) if test else None
    return Reading(_rows(train, data, domains), tests, notes)


def _splits(tree: Tree) -> dict[Path, Named]:
    return {path: _named(path, tree) for path in tree.files}


def _named(path: Path, tree: Tree) -> Named:
    """Return what the file's own name says, else its nearest folder's that says anything.

    Raises
    ------
    DataError
        If one says that it is for training, and the other that it is not.
    """
    *folders, _ = tree.parts(path)
    near, *far = [name for name in (path.stem, *reversed(folders)) if kinds_of(name)] or [""]
    split = split_of(near, tree.where)
    odd = [
        name for name in far if split not in (kinds := kinds_of(name)) and TRAIN in (split, *kinds)
    ]
    if odd:
        raise DataError(
            f"{tree.where}: is {'/'.join(tree.parts(path))!r} the {split} split, or what "
            f"{odd[0]!r} is called like? Rename one of them, or name it with data.path or "
            "data.test-path."
        )
    return Named(split, near or path.name)


def _labelled(files: SplitFiles, column: str) -> bool:
    kinds = [_schema(path, files.where) for path in files.files]
    if any(column not in kind.names or pa.types.is_null(kind.field(column).type) for kind in kinds):
        return False
    return has_labels(_values(files, column, "data.label-column"))


def _rows(files: SplitFiles, data: DataConfig, domains: bool) -> Rows:
    where = files.where
    schemas = [_schema(path, where) for path in files.files]
    declared = [declared_features(schema) for schema in schemas]
    columns = schemas[0].names
    label = require_column("data.label-column", data.label_column, columns, where)
    typed = [field.name for field in schemas[0] if is_image(field, declared[0])]
    image = find_image_column(columns, typed, data.image_column, where)
    names = [class_names_of(features.get(label)) for features in declared]
    if len(set(names)) > 1:
        odd = next(path for path, its in zip(files.files, names, strict=True) if its != names[0])
        raise DataError(
            f"{where}: {str(odd)!r} numbers its classes otherwise than {files.files[0].name!r}: "
            "read them one at a time, or write labels as words."
        )
    has_domains = domains and data.domain_column in columns
    return make_rows(
        _values(files, label, "data.label-column"),
        ParquetImages(tuple(files.files), image, where),
        where,
        names=names[0],
        domains=_values(files, data.domain_column, "data.domain-column") if has_domains else None,
        roots=(files.tree.root,),
    )


def _schema(file: Path, where: str) -> pa.Schema:
    try:
        schema = pq.read_schema(file)
        declared_features(schema)
        return schema
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(file, where, error) from error


def _values(files: SplitFiles, column: str, setting: str) -> pa.ChunkedArray:
    """Return a column of all files; words as indices into the different ones."""
    chunks: list[pa.Array] = []
    rows = 0
    for path in files.files:
        try:
            kind = pq.read_schema(path).field(column).type
            require_kind(kind, f"{files.where}: {setting}")  # before it is read
            words = [column] if is_words(kind) else None
            with pq.ParquetFile(path, read_dictionary=words) as file:
                rows += file.metadata.num_rows
                if rows > MOST_ROWS:
                    raise DataError(
                        f"{files.where} claims to hold {rows} rows and more: {MOST_ROWS} at most "
                        "can be read; give a part of it."
                    )
                chunks += map(alike, file.read(columns=[column]).column(column).chunks)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _unreadable(path, files.where, error) from error
    try:
        return pa.chunked_array(chunks) if chunks else pa.chunked_array([], pa.int64())
    except pa.ArrowException as error:
        raise DataError(
            f"{files.where}: {column!r} is of one type in some files and of another in others: "
            "write them alike."
        ) from error


def _unreadable(file: Path, where: str, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{where}: {str(file)!r} does not exist any more; put it back.")
    reason = " ".join(reason_of(error).split())
    return DataError(
        f"{where}: {str(file)!r} can't be read as a parquet file with the others' columns "
        f"({reason})."
    )


@dataclass(frozen=True)
class ParquetImages:
    """The image cells of some files, numbered through; a few rows in memory at a time."""

    files: tuple[Path, ...]
    column: str
    where: str

    def __call__(self, rows: Indices) -> Iterator[Any]:
        """Yield the cells of ascending row numbers, skipping row groups without any."""
        start = 0
        for path in self.files:
            try:
                with pq.ParquetFile(path) as file:
                    for group in range(file.num_row_groups):
                        stop = start + file.metadata.row_group(group).num_rows
                        first, last = np.searchsorted(rows, [start, stop])
                        if first < last:
                            yield from self._of(file, group, rows[first:last] - start)
                        start = stop
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(path, self.where, error) from error

    def _of(self, file: pq.ParquetFile, group: int, rows: Indices) -> Iterator[Any]:
        """Yield the cells of some rows of a row group.

        Not of the group as a whole: a column of one large cell, repeated by number, is a small
        file, and takes the memory of all its rows.
        """
        start = 0
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[self.column]):
            stop = start + len(batch)
            first, last = np.searchsorted(rows, [start, stop])
            if first < last:
                yield from batch.column(0).take(pa.array(rows[first:last] - start)).to_pylist()
            if last == len(rows):
                return
            start = stop
