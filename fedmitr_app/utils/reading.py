"""Reading files that somebody else may have written.

Nothing here follows a link, waits at a pipe, or takes in more than it was told to.
"""

import contextlib
import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

MAX_BYTES = 2**20
MAX_DEPTH = 16
MAX_HEADER_BYTES = 2**24
"""Of a safetensors file; a checkpoint's holds every loss so far."""
MAX_INTEGER = 2**64
# Links are not followed, and nothing is waited for, where the system knows how.
_FLAGS = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")


def require_ordinary(path: Path) -> None:
    """Refuse what is no ordinary file: a link, a folder, a device, a pipe.

    Raises
    ------
    OSError
        Whose ``strerror`` says what it is; also if it is not there.
    """
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_kind(mode)} and no ordinary file", str(path))


def require_folder(path: Path) -> None:
    """Refuse what is no folder, such as a link to one; raises as :func:`require_ordinary`."""
    mode = path.lstat().st_mode
    if not stat.S_ISDIR(mode):
        raise OSError(errno.ENOTDIR, f"it is {_kind(mode)} and no folder", str(path))


def open_ordinary(path: Path) -> BinaryIO:
    """Open an ordinary file to read its bytes; raises as :func:`require_ordinary`."""
    require_ordinary(path)  # opening a device may do something already
    flags = [getattr(os, name, 0) for name in _FLAGS]
    file = os.fdopen(os.open(path, os.O_RDONLY | sum(flags)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was swapped meanwhile
        file.close()
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return file


def walk(folder: Path) -> Iterator[Path]:
    """Return all that is below a folder, links unfollowed; what goes meanwhile is no matter."""
    for place, folders, files in os.walk(folder):
        yield from (Path(place) / name for name in (*folders, *files))


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """Return a file's UTF-8 text.

    Raises
    ------
    OSError
        If it can't be read, or is no ordinary file.
    ValueError
        If it is longer than ``most`` bytes, or no UTF-8.
    """
    with open_ordinary(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is longer than {most} bytes")
    return data.decode("utf-8")


def read_json(path: Path, most: int = MAX_BYTES) -> Any:
    """Return what a JSON file holds; raises as :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, most))


def read_table(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """Return what a JSON file holds, if that is a table; raises as :func:`read_json`."""
    found = read_json(path, most)
    if not isinstance(found, dict):
        raise ValueError("it holds no table of names and values")
    return found


def parse_json(text: str) -> Any:
    """Return what a JSON text says.

    Raises
    ------
    ValueError
        If it is no JSON, nested deeper than ``MAX_DEPTH``, or holds a number that is not finite
        or beyond 64 bits.
    """
    try:
        found = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _require_plain(found, MAX_DEPTH)
    return found


@contextlib.contextmanager
def open_tensors(path: Path, framework: str = "numpy") -> Iterator[Any]:
    """Open a safetensors file to read tensor by tensor, as ``safe_open`` does.

    Raises
    ------
    OSError
        If it can't be read, or is no ordinary file.
    ValueError
        If it is no safetensors file, also for what the ``with`` block finds damaged.
    """
    with open_ordinary(path) as file:
        if int.from_bytes(file.read(8), "little") > MAX_HEADER_BYTES:
            raise ValueError(f"its header is longer than {MAX_HEADER_BYTES} bytes")
    try:
        with safe_open(path, framework=framework) as stored:
            yield stored
    except (SafetensorError, TypeError) as error:  # TypeError: a type that NumPy lacks
        raise ValueError(str(error)) from error


def _no_number(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number of JSON")


def _require_plain(value: Any, depth: int) -> None:
    if isinstance(value, float) and not math.isfinite(value):  # written as 1e999
        raise ValueError("it holds a number that is not finite")
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise ValueError("it holds a number beyond 64 bits")
    if isinstance(value, (list, dict)):
        if depth == 0:
            raise ValueError("it is nested too deeply")
        for item in value.values() if isinstance(value, dict) else value:
            _require_plain(item, depth - 1)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a link",
        stat.S_IFDIR: "a folder",
        stat.S_IFREG: "a file",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")
