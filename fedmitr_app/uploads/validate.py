"""Check one upload's arrays by themselves against the weights that every client got.

Two steps, so that nothing is decoded before it is known to be wanted and small
enough: :func:`check_headers` on what the sender declares, :func:`check_arrays` on
the decoded values.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fedmitr_app.errors import UploadError
from fedmitr_app.uploads.npy import MAX_HEADER_BYTES

_SHOWN_NAMES = 3
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class ArraySpec:
    """Shape and type of one array of the reference weights."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class ArrayHeader:
    """What a sender declares about one array, before its payload is looked at."""

    shape: tuple[int, ...]
    dtype: str
    payload_bytes: int


def check_headers(headers: Mapping[str, ArrayHeader], reference: Mapping[str, ArraySpec]) -> None:
    """Refuse an upload by what it declares: names, shapes, types and payload sizes.

    Raises
    ------
    UploadError
        With the first thing that is wrong, in one sentence. Passing bounds what
        decoding can cost: no more than θ₀'s own values at 8 bytes each.
    """
    check_names(headers, reference)
    for name, header in headers.items():
        spec = reference[name]
        check_shape(name, header.shape, spec)
        dtype = _parse_dtype(name, header.dtype)
        _check_castable(name, dtype, spec)
        values = math.prod(header.shape) * dtype.itemsize
        if not values <= header.payload_bytes <= values + MAX_HEADER_BYTES:
            raise UploadError(
                f"{name} declares {values} bytes of values "
                f"but its payload has {header.payload_bytes}."
            )


def check_names(names: Iterable[str], reference: Mapping[str, ArraySpec]) -> None:
    """Refuse missing, unknown and renamed arrays."""
    names = list(names)
    sent = set(names)
    missing = [name for name in reference if name not in sent]
    unknown = [name for name in names if name not in reference]
    if not missing and not unknown:
        return
    if prefix := _common_prefix(names, reference):
        raise UploadError(
            f"every array's name starts with {prefix!r}, which the server's names "
            "do not: send the state dict of the inner model."
        )
    parts = [
        f"{len(group)} {word} ({_some(group)})"
        for group, word in ((missing, "missing"), (unknown, "unknown to the server"))
        if group
    ]
    raise UploadError(f"its arrays are not those that the server sent: {' and '.join(parts)}.")


def check_arrays(
    arrays: Mapping[str, np.ndarray], reference: Mapping[str, ArraySpec]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Check decoded values and bring them to the reference's types and order.

    Returns
    -------
    tuple[dict[str, np.ndarray], list[str]]
        The arrays in the reference's order, and a note for each kind of cast made.

    Raises
    ------
    UploadError
        For wrong names, shapes or types, and for NaN or infinite values (also those
        that a cast to a smaller float makes).
    """
    check_names(arrays, reference)
    clean: dict[str, np.ndarray] = {}
    casts: dict[str, int] = {}
    for name, spec in reference.items():
        value = arrays[name]
        check_shape(name, value.shape, spec)
        _check_castable(name, value.dtype, spec)
        if value.dtype != spec.dtype:
            kind = f"{value.dtype} to {spec.dtype}"
            casts[kind] = casts.get(kind, 0) + 1
            with np.errstate(over="ignore"):
                value = value.astype(spec.dtype)
        if spec.dtype.kind == "f" and not np.isfinite(value).all():
            bad = int(value.size - np.isfinite(value).sum())
            raise UploadError(f"{name} has {bad} of {value.size} values that are NaN or infinite.")
        clean[name] = value
    return clean, [f"{count} array(s) cast from {kind}" for kind, count in casts.items()]


def check_shape(name: str, shape: tuple[int, ...], spec: ArraySpec) -> None:
    """Refuse an array of another shape than the reference's."""
    if tuple(shape) != spec.shape:
        told = str(tuple(shape[:_MOST_DIMENSIONS]))
        if len(shape) > _MOST_DIMENSIONS:
            told = f"of {len(shape)} dimensions"
        raise UploadError(f"{name} has shape {told} where the server has {spec.shape}.")


def _parse_dtype(name: str, text: str) -> np.dtype:
    try:
        if re.fullmatch(r"[<>=|]?[a-z]+[0-9]*", text):
            return np.dtype(text)
    except (TypeError, ValueError):
        pass
    raise UploadError(
        f"{name} is of type {text[:40]!r}: send float32 (cast bfloat16 before upload)."
    )


def _check_castable(name: str, dtype: np.dtype, spec: ArraySpec) -> None:
    # Floats may change width (values are checked afterwards); everything else must
    # keep its meaning exactly, and objects never pass.
    both_floats = dtype.kind == "f" and spec.dtype.kind == "f" and dtype.itemsize <= 8
    integers = dtype.kind in "iu" and spec.dtype.kind in "iu"
    if both_floats or (integers and np.can_cast(dtype, spec.dtype, "safe")) or dtype == spec.dtype:
        return
    raise UploadError(f"{name} is of type {dtype} where the server has {spec.dtype}.")


def _common_prefix(names: list[str], reference: Mapping[str, ArraySpec]) -> str:
    for name in names[:1]:
        for known in reference:
            prefix = name.removesuffix(known)
            if prefix != name and {prefix + key for key in reference} == set(names):
                return prefix
    return ""


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:_SHOWN_NAMES])
    return shown + (", …" if len(names) > _SHOWN_NAMES else "")
