"""Local parquet files, read without a copy on disk: label columns whole, images by row group."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features

from fedmitr_app.config import DataConfig
from fedmitr_app.errors import DataError
from fedmitr_app.partitions.columns import find_image_column
from fedmitr_app.partitions.paths import existing_path
from fedmitr_app.partitions.rows import Indices, Rows, make_rows, require_column
from fedmitr_app.partitions.splits import split_files


def read_parquet(data: DataConfig) -> tuple[Rows, Rows | None]:
    """Return the training rows, and the test rows where there are any.

    ``data.path`` is a file, or a folder: there, files whose names start with ``test``, or
    where there are none with ``validation`` or ``val``, are the test split; all others that
    don't start so are for training. ``data.test_path`` goes before that.

    Raises
    ------
    DataError, ConfigError
        For a missing path, a file that isn't parquet, or a missing column.
    """
    train, test = _files("data.path", data.path)
    if data.test_path:
        test = sum(_files("data.test-path", data.test_path), start=[])
        if not test:
            raise DataError(
                f"data.test-path = {data.test_path!r} holds no *.parquet files: it must be a "
                "parquet file or a folder of them."
            )
    if not train:
        raise DataError(
            f"data.path = {data.path!r} holds no training files: it must be a parquet file, or a "
            "folder with *.parquet files of which not all start with 'test' or 'validation'."
        )
    where = f"data.path = {data.path!r}"
    test_where = f"data.test-path = {data.test_path!r}" if data.test_path else where
    return _rows(train, data, where), _rows(test, data, test_where) if test else None


def _files(setting: str, text: str) -> tuple[list[Path], list[Path]]:
    path = existing_path(setting, text)
    if path.is_file():
        return [path], []
    return split_files(sorted(path.glob("*.parquet")))


def _rows(files: list[Path], data: DataConfig, where: str) -> Rows:
    features = _features(files[0], where)
    label = require_column("data.label-column", data.label_column, list(features), where)
    image = find_image_column(features, data.image_column, where)
    has_domains = data.domain_column in features
    kind = features[label]
    return make_rows(
        _values(files, label, where),
        ParquetImages(tuple(files), image),
        where,
        names=kind.names if isinstance(kind, ClassLabel) else None,
        domains=_values(files, data.domain_column, where) if has_domains else None,
    )


def _features(file: Path, where: str) -> Features:
    try:
        return Features.from_arrow_schema(pq.read_schema(file))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(_unreadable(file, where, error)) from error


def _values(files: list[Path], column: str, where: str) -> list[Any]:
    values: list[Any] = []
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                values += file.read(columns=[column]).column(column).to_pylist()
        except (pa.ArrowInvalid, OSError, KeyError) as error:
            raise DataError(_unreadable(path, where, error)) from error
    return values


def _unreadable(file: Path, where: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{where}: {file} can't be read as a parquet file with the others' columns ({reason})."


@dataclass(frozen=True)
class ParquetImages:
    """The image cells of some files, numbered through; one row group in memory at a time."""

    files: tuple[Path, ...]
    column: str

    def __call__(self, rows: Indices) -> Iterator[Any]:
        """Yield the cells of ascending row numbers, skipping row groups without any."""
        start = 0
        for path in self.files:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    stop = start + file.metadata.row_group(group).num_rows
                    first, last = np.searchsorted(rows, [start, stop])
                    if first < last:
                        cells = file.read_row_group(group, columns=[self.column]).column(0)
                        yield from cells.take(pa.array(rows[first:last] - start)).to_pylist()
                    start = stop
