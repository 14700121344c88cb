"""Claiming a folder for a run: a new one, an empty one, or that of a run that was stopped."""

import errno
import os
import stat
from datetime import datetime
from pathlib import Path
from typing import Any

from fedmitr_app.errors import RunFolderError
from fedmitr_app.run_folder.status import COMPLETED, LOCK, STATUS, note_interrupted
from fedmitr_app.utils.files import reason_of
from fedmitr_app.utils.reading import read_table, require_ordinary, walk
from fedmitr_app.utils.text import harmless

CONFIG = "config.json"
HINT = "set output.run-dir to a new or empty folder"
_LONGEST_ID = 64


def require_ours(target: Path, resume: bool) -> None:
    """Refuse a folder that holds anything, unless it is a run's that is to be gone on with."""
    if resume and os.path.lexists(target / STATUS):
        return
    try:
        found = [*target.iterdir()]
    except OSError as error:  # such as another account's
        raise unusable(target, error) from error
    for path in found:
        # A first status that was never finished is nobody's.
        if path.name != LOCK and not (path.name.startswith(f".{STATUS}.") and resume):
            raise _taken(target)


def require_plain(target: Path) -> None:
    """Refuse a folder with anything in it but files and folders: it may be somebody else's.

    A link would have the run read, or write, somewhere else; a pipe would have it wait.
    """
    for path in walk(target):
        try:
            if not stat.S_ISDIR(path.lstat().st_mode):
                require_ordinary(path)
        except FileNotFoundError:  # whoever wrote it may be ending only now
            continue
        except OSError as error:
            raise RunFolderError(
                f"output.run-dir = {str(target)!r} cannot be gone on with: {path} in it is none "
                f"of a run's ({reason_of(error)}), {HINT}."
            ) from error


def left_behind(target: Path) -> dict[str, Any] | None:
    """Return the fields of the run that was stopped here; None if none came as far as settings.

    Raises
    ------
    RunFolderError
        If they are damaged, or nothing that a run wrote.
    """
    if not ((target / STATUS).exists() and (target / CONFIG).exists()):
        return None
    try:
        read_table(target / STATUS)  # what is no status is left as it is
        found = note_interrupted(target)
        settings = read_table(target / CONFIG)
        if not all(isinstance(value, bool | int | float | str) for value in settings.values()):
            raise ValueError("it is no table of settings")
        if not all(isinstance(found[name], str) for name in ("id", "started", "state")):
            raise ValueError("it does not say what became of a run")
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(
            f"output.run-dir = {str(target)!r} cannot be gone on with: {STATUS} or {CONFIG} in it "
            f"is damaged ({reason_of(error)}), {HINT}."
        ) from error
    return {
        "run_id": harmless(found["id"], _LONGEST_ID),
        "started": harmless(found["started"], _LONGEST_ID),
        "completed": found["state"] == COMPLETED,
        "settings": settings,
    }


def new_default(seed: int) -> Path:
    """Make a folder named after the moment; runs of the same second get a number."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-seed{seed}"
    parent = Path("fedmitr-runs")
    try:
        parent = parent.absolute()
    except OSError as error:  # the working directory is gone
        raise unusable(parent, error) from error
    for attempt in range(1, 1000):
        target = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            target.mkdir(mode=0o700)
        except FileExistsError:
            if not parent.is_dir():
                break
        except OSError as error:
            raise unusable(target, error) from error
        else:
            return target
    raise _taken(target)


def make_folder(path: str) -> Path:
    """Make the folder that the user named, unless it is there."""
    try:
        # expanduser raises RuntimeError for an unknown ~user; a null byte ValueError.
        target = Path(os.path.abspath(Path(path).expanduser()))
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        return target
    except FileExistsError as error:
        raise RunFolderError(
            f"output.run-dir = {path!r} is not allowed: a file stands there, {HINT}."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise unusable(path, error) from error


def check_run_dir(path: str, resume: bool) -> Path:
    """Return the folder that a run would work in, if it could; nothing is made.

    Raises
    ------
    RunFolderError
        As when a run begins.
    """
    try:
        target = Path(os.path.abspath(Path(path or "fedmitr-runs").expanduser()))
        there = target.is_dir()
        parent = next(each for each in (target, *target.parents) if os.path.lexists(each))
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{parent} is no folder", str(parent))
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(parent))
    except (OSError, RuntimeError, ValueError) as error:
        raise unusable(path, error) from error
    if path and there:
        require_ours(target, resume)
    return target if path else target / "<time>-seed<seed>"


def _taken(target: Path) -> RunFolderError:
    what = "another run" if os.path.lexists(target / STATUS) else "other files"
    return RunFolderError(
        f"output.run-dir = {str(target)!r} is not allowed: it already holds {what}, {HINT}."
    )


def unusable(target: Path | str, error: BaseException) -> RunFolderError:
    """Return the error of a folder that can't be used, and why."""
    return RunFolderError(
        f"output.run-dir = {str(target)!r} cannot be used: {reason_of(error)}, "
        "set it to a folder that this process may write."
    )
