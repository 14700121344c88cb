"""Decode the bytes of one ``.npy`` array that a stranger sent."""

import io

import numpy as np
from numpy.lib import format as npy_format

from fedmitr_app.errors import UploadError

# A header of a plain array takes about 128 bytes; the format would allow 4 GiB.
MAX_HEADER_BYTES = 4096


def decode_npy(data: bytes, *, name: str = "array") -> np.ndarray:
    """Return the array in ``data`` without copying it, and never unpickle.

    Parameters
    ----------
    data : bytes
        A whole ``.npy`` file, as ``numpy.save`` writes it (format 1.0 or 2.0).
    name : str
        What to call the array in an error.

    Returns
    -------
    np.ndarray
        A read-only view on ``data``.

    Raises
    ------
    UploadError
        If the header is broken or oversized, the type holds Python objects, or the
        header promises more or fewer values than there are bytes.
    """
    stream = io.BytesIO(data)
    shape, fortran_order, dtype = _read_header(stream, name)
    if dtype.hasobject or dtype.kind not in "fiub":
        raise UploadError(f"{name} holds values of type {dtype}, which are not plain numbers.")
    start = stream.tell()
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if count * dtype.itemsize != len(data) - start:
        raise UploadError(
            f"{name} promises {count} values of type {dtype} but carries {len(data) - start} bytes."
        )
    values = np.frombuffer(data, dtype=dtype, offset=start, count=count)
    return values.reshape(shape, order="F" if fortran_order else "C")


def _read_header(stream: io.BytesIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {
        (1, 0): npy_format.read_array_header_1_0,
        (2, 0): npy_format.read_array_header_2_0,
    }
    try:
        version = npy_format.read_magic(stream)
        shape, fortran_order, dtype = readers[version](stream, max_header_size=MAX_HEADER_BYTES)
    except Exception as error:  # numpy raises half a dozen kinds on broken headers
        raise UploadError(f"{name} is not a readable npy array.") from error
    if any(size < 0 for size in shape):
        raise UploadError(f"{name} has a negative dimension in its shape {shape}.")
    return shape, fortran_order, dtype
