"""A column of words or whole numbers as indices into its few different values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fedmitr_app.errors import DataError
from fedmitr_app.partitions.names import require_name

Indices = NDArray[np.int64]
Column: TypeAlias = Sequence[Any] | NDArray[Any] | pa.Array | pa.ChunkedArray


@dataclass(frozen=True)
class Encoded:
    """A column's values as indices into their names."""

    codes: Indices
    names: tuple[str, ...]


def encode(column: Column, setting: str, names: Sequence[str] | None = None) -> Encoded:
    """Return a column as indices into the names of its values.

    Memory is that of the indices and the different values, however long one of them is.

    Parameters
    ----------
    column : Column
        ``[N]``, N > 0: words, whole numbers or truth values.
    setting : str
        What names the column, for messages.
    names : Sequence[str] | None
        What whole numbers stand for, where that is known: then all of these are the names.
        Else the column's own values are, in their order (numbers' or letters').

    Raises
    ------
    DataError
        For anything else than words or whole numbers; a missing or negative one; one beyond
        ``names``; a name that can't be one.
    """
    codes, values = _distinct(column, setting)
    numbers = isinstance(values[0], int)
    off = [value for value in values if numbers and (value < 0 or names and value >= len(names))]
    if off:
        classes = f" outside its {len(names)} classes" if names else ""
        raise DataError(
            f"{setting} holds {off[0]}{classes} (-1 means unlabelled): use labelled images (local "
            "files with data.path and data.test-path) or another column; if it is a class, write "
            "classes as words.",
            public=f"some of its images have no label ({off[0]}).",
        )
    if names and numbers:
        words = [require_name(name, setting) for name in names]
        if len(set(words)) < len(words):
            raise DataError(f"{setting} has two classes of one name: rename one of them.")
        return Encoded(np.array(values, dtype=np.int64)[codes], tuple(words))
    spelt = [require_name(str(value), setting) for value in values]
    # Spellings that look alike are one class: it stands where the first of them sorts.
    order = sorted(range(len(values)), key=lambda which: _rank(values[which], spelt[which]))
    known = tuple(dict.fromkeys(spelt[which] for which in order))
    index_of = {name: index for index, name in enumerate(known)}
    return Encoded(np.array([index_of[name] for name in spelt])[codes], known)


def alike(chunk: pa.Array) -> pa.Array:
    """Return labels as they are in every file: whole numbers of 64 bits, words by number.

    Raises
    ------
    pyarrow.ArrowException
        For a number beyond 63 bits.
    """
    words = pa.types.is_dictionary(chunk.type) and is_words(chunk.type.value_type)
    if is_words(chunk.type):
        chunk, words = chunk.dictionary_encode(), True
    if words:
        return chunk.cast(pa.dictionary(pa.int32(), pa.large_string()))
    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.dictionary_decode()
    return chunk.cast(pa.int64()) if pa.types.is_integer(chunk.type) else chunk


def has_labels(column: pa.ChunkedArray) -> bool:
    """Tell whether any row has a label: one that is neither missing nor -1."""
    if column.null_count == len(column):
        return False
    if not pa.types.is_integer(column.type):
        return True
    return bool(pc.any(pc.not_equal(column, -1)).as_py())


def require_kind(kind: pa.DataType, setting: str) -> None:
    """Raise ``DataError`` for a column of anything else than words, whole numbers or truths."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (is_words, pa.types.is_integer, pa.types.is_boolean)
    if not any(test(value) for test in tests):
        raise _no_classes(setting, str(kind))


def is_words(kind: pa.DataType) -> bool:
    """Tell whether a column holds text."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _no_classes(setting: str, found: str) -> DataError:
    return DataError(
        f"{setting} must name a column with a whole number or a word in every row, but it holds "
        f"{found}.",
        public="some of its images have no label, or one that is no class.",
    )


def _rank(value: Any, name: str) -> tuple[int, str]:
    return (0, name) if isinstance(value, str) else (int(value), "")


def _distinct(column: Column, setting: str) -> tuple[Indices, list[Any]]:
    """Return each row's index into the different values, and these: all str, or all int."""
    if not isinstance(column, (pa.Array, pa.ChunkedArray)):
        column = pa.array(column)  # one kind of value: every caller makes it so
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries()
    require_kind(column.type, setting)
    if column.null_count:
        raise _no_classes(setting, f"{column.null_count} rows without any")
    encoded = column.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    # Of a shared dictionary only what occurs here: a part of a table may bring all of it along.
    used, codes = np.unique(codes, return_inverse=True)
    try:
        values = pc.take(encoded.dictionary, pa.array(used)).to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(f"{setting} holds words that are not UTF-8: write them anew.") from error
    if None in values:  # a dictionary may hold it, too
        raise _no_classes(setting, "rows without any")
    return codes, values
