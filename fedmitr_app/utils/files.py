"""Writing files so that a reader, or a crash, never sees half of one."""

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fedmitr_app.errors import FedmitrError, RunFolderError
from fedmitr_app.utils.reading import open_tensors, parse_json
from fedmitr_app.utils.text import harmless

TEMPORARY = ".tmp"
"""How the hidden folders are called in which files are written."""
_SHOWN_NAME = 100


def local_path(setting: str, text: str | Path, error: type[FedmitrError]) -> Path:
    """Return the path that a setting means, ``~`` expanded, there or not.

    Raises
    ------
    FedmitrError
        Of the kind given, for the home of a user that there is not.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as why:
        raise error(
            f"{setting} = {str(text)!r} names a user's home that there is not.",
            public=f"its {setting} names a user's home that there is not.",
        ) from why


def existing_path(setting: str, text: str, error: type[FedmitrError]) -> Path:
    """Return an existing path, ``~`` expanded.

    Raises
    ------
    FedmitrError
        Of the kind given, if nothing is there or it may not be looked at; names the absolute
        path, since the working directory of a Flower process is not always where the command was
        typed.
    """
    path = local_path(setting, text, error)
    try:
        path.stat()
    except FileNotFoundError:
        why = "does not exist on this machine"
    except (OSError, ValueError) as refused:  # ValueError: a null byte
        why = f"can't be reached on this machine: {reason_of(refused)}"
    else:
        return path
    raise error(
        f"{setting} = {text!r} {why} ({path.absolute()}): set it to what does, best as an absolute "
        "path.",
        public=f"its {setting} {why.split(':')[0]}.",
    )


def write_atomically(path: Path, write: Callable[[Path], object], private: bool = False) -> None:
    """Let ``write`` fill a temporary file, then put it in the place of ``path``.

    Parameters
    ----------
    path : Path
        Where the file will stand, complete, or stay as it was. A link that stands there is
        replaced, not followed.
    write : Callable[[Path], object]
        Writes the whole content to the path that it is given.
    private : bool
        Whether only the file's owner may read it; otherwise that is the umask's to say.

    Raises
    ------
    RunFolderError
        When the file cannot be written (no space, no permission, folder gone).
    """
    try:
        # Beside the target, because os.replace is only atomic within one file system. In a new
        # folder of its own nobody else can have put a link where the file is to be.
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name[:_SHOWN_NAME]}.", suffix=TEMPORARY, dir=path.parent
        ) as folder:
            temporary = Path(folder) / path.name
            mode = _created(temporary, 0o600 if private else 0o666)
            write(temporary)
            temporary.chmod(mode)  # safetensors would leave a file that only its owner reads
            _to_disk(temporary)
            os.replace(temporary, path)
        _folder_to_disk(path.parent)
    except (OSError, SafetensorError) as error:  # the latter is safetensors' for a full disk
        raise unwritable(path, error) from error


def _created(path: Path, mode: int) -> int:
    """Make an empty file that wasn't there, and return the mode that the umask leaves it."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        return stat.S_IMODE(os.fstat(file).st_mode)
    finally:
        os.close(file)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _folder_to_disk(folder: Path) -> None:
    """Have the folder's new name survive a power cut, where the system can promise that."""
    with contextlib.suppress(OSError):  # the file is in its place: not every system can
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def append_text(path: Path, text: str) -> None:
    """Append UTF-8 text in one write, never through a link or into a file of other names.

    Raises
    ------
    RunFolderError
        When that cannot be done.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for careful in ("O_NOFOLLOW", "O_NONBLOCK"):  # the latter: a pipe would have it wait
        flags |= getattr(os, careful, 0)
    try:
        with os.fdopen(os.open(path, flags, 0o666), "ab") as file:
            if (found := os.fstat(file.fileno())).st_nlink > 1 or not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EMLINK, "it has another name too, or is no ordinary file")
            file.write(text.encode("utf-8", "replace"))
    except OSError as error:
        raise unwritable(path, error) from error


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Write UTF-8 text atomically; characters that have no UTF-8 form become '?'."""
    data = text.encode("utf-8", "replace")
    write_atomically(path, lambda temporary: temporary.write_bytes(data), private)


def write_json(path: Path, data: Mapping[str, Any], private: bool = False) -> None:
    """Write ``data`` atomically as indented, strictly valid JSON."""
    text = json.dumps(as_json(data), indent=2, allow_nan=False)
    write_text(path, text + "\n", private)


def json_line(data: Mapping[str, Any]) -> str:
    """Return ``data`` as one line of strictly valid JSON, without its line break."""
    return json.dumps(as_json(data), allow_nan=False)


def unwritable(path: Path, error: BaseException) -> RunFolderError:
    """Return the sentence for a file or folder that the system refuses to write."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    # Of safetensors the number is unknown.
    space = "free some space there, or " if full or not isinstance(error, OSError) else ""
    return RunFolderError(
        f"{path} cannot be written: {reason_of(error)}; {space}choose another folder."
    )


def as_json(value: Any) -> Any:
    """Return ``value`` as what JSON can hold.

    Mappings get string keys; tensors, arrays and their scalars become numbers and
    lists; NaN and infinities, which JSON lacks, become null; anything else its text.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
        return [as_json(item) for item in value]
    if hasattr(value, "tolist"):  # torch tensors, NumPy arrays and scalars
        return as_json(value.tolist())
    return str(value)


def kind_and_reason(error: BaseException) -> str:
    """Return what kind an error is and its words, short and on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def reason_of(error: BaseException) -> str:
    """Return in one line why something failed, without the path and number a system adds."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = harmless(reason)  # it may quote what stands in a stranger's file
    return reason[:1].lower() + reason[1:]


class Stored(NamedTuple):
    """A file of :func:`save_tensors`."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    digest: str


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], private: bool = False
) -> None:
    """Write tensors, and JSON-able facts about them, as one safetensors file.

    It also holds the tensors' SHA-256, for :func:`load_tensors` to compare.

    Raises
    ------
    RunFolderError
        When the file cannot be written.
    """
    plainly = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {"facts": json.dumps(as_json(facts)), "digest": _digest(plainly)}
    write_atomically(path, lambda partial: save_file(plainly, partial, metadata=header), private)


def load_tensors(path: Path, device: torch.device | str = "cpu") -> Stored:
    """Read what :func:`save_tensors` wrote.

    Raises
    ------
    RunFolderError
        If it is gone, unreadable, or not what was written.
    """
    try:
        with open_tensors(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            found = _digest(tensors)
        facts, digest = parse_json(header["facts"]), header["digest"]
        if not isinstance(facts, dict):
            raise ValueError("its facts are no table")
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"{path} cannot be read back: {reason_of(error)}.") from error
    if found != digest:
        raise RunFolderError(f"{path} is not what was written: its digest differs.")
    return Stored({name: value.to(device) for name, value in tensors.items()}, facts, digest)


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of named arrays in hex, whatever their order."""
    return sorted_digest((name, arrays[name]) for name in sorted(arrays))


def sorted_digest(pairs: Iterable[tuple[str, np.ndarray]]) -> str:
    """Return the same of arrays that come one by one, sorted by their names."""
    digest = hashlib.sha256()
    for name, value in pairs:
        digest.update(f"{name}\x1f{value.dtype.str}\x1f{value.shape}\x1f".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return arrays_digest({name: value.numpy() for name, value in tensors.items()})
