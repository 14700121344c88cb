"""Writing files so that a reader, or a crash, never sees half of one."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fedmitr_app.errors import RunFolderError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary neighbour of ``path``, then put it in its place.

    Parameters
    ----------
    path : Path
        Where the file will stand, complete, or stay as it was.
    write : Callable[[Path], object]
        Writes the whole content to the path that it is given.

    Raises
    ------
    RunFolderError
        When the file cannot be written (no space, no permission, folder gone).
    """
    # Beside the target, because os.replace is only atomic within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors would leave a file that only its owner reads
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # the latter is safetensors' for a full disk
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; characters that have no UTF-8 form become '?'."""
    data = text.encode("utf-8", "replace")
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` atomically as indented, strictly valid JSON."""
    text = json.dumps(plain(data), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def json_line(data: Mapping[str, Any]) -> str:
    """Return ``data`` as one line of strictly valid JSON, without its line break."""
    return json.dumps(plain(data), allow_nan=False)


def unwritable(path: Path, error: BaseException) -> RunFolderError:
    """Return the sentence for a file or folder that the system refuses to write."""
    return RunFolderError(
        f"{path} cannot be written: {reason_of(error)}; free some space there or choose another "
        "run folder."
    )


def plain(value: Any) -> Any:
    """Return ``value`` as what JSON can hold.

    Mappings get string keys; tensors, arrays and their scalars become numbers and
    lists; NaN and infinities, which JSON lacks, become null; anything else its text.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # torch tensors, NumPy arrays and scalars
        return plain(value.tolist())
    return str(value)


def reason_of(error: BaseException) -> str:
    """Return why the system refused, without the path and number it adds."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return reason[:1].lower() + reason[1:]
