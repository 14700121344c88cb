"""``status.json``: what became of a run, also of one that could not say so itself."""

import contextlib
import logging
import re
import stat
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedmitr_app.errors import RunFolderError
from fedmitr_app.utils.files import write_json
from fedmitr_app.utils.reading import read_table, require_ordinary, walk

_log = logging.getLogger(__name__)

STATUS, LOCK = "status.json", ".lock"
RUNNING, COMPLETED, FAILED, STOPPED = "running", "completed", "failed", "stopped"
INTERRUPTED = "interrupted"
"""Its process ended without a word: killed, crashed, or the machine went down."""
_RUN_ID = re.compile("[0-9]{1,20}")


def now() -> str:
    """Return the moment in ISO 8601 with the machine's time zone."""
    return _iso(datetime.now())


def _iso(moment: datetime) -> str:
    return moment.astimezone().isoformat(timespec="seconds")


def read_status(folder: Path) -> dict[str, Any]:
    """Return a run folder's status; nothing if it has none that is readable."""
    with contextlib.suppress(OSError, ValueError):
        return read_table(folder / STATUS)
    return {}


def lock_of(folder: Path) -> FileLock:
    """Return the lock that a process holds while it works in a run folder.

    The system lets go of it however the process ends.

    Raises
    ------
    OSError
        If what stands in the lock's place is no ordinary file.
    """
    with contextlib.suppress(FileNotFoundError):
        require_ordinary(folder / LOCK)
    # Whoever ends a process may do so in another thread than the one that works.
    return FileLock(folder / LOCK, blocking=False, thread_local=False)


def settle_status(folder: Path) -> dict[str, Any]:
    """Return a run folder's status as it is true: "running" only if a process is at work.

    A run whose process is gone is noted as interrupted, in the folder too if that can be
    written.
    """
    status = read_status(folder)
    if status.get("state") != RUNNING:
        return status
    try:
        with lock_of(folder):
            return note_interrupted(folder)
    except Timeout:
        return status
    except OSError:  # somebody else's folder, which can't be locked
        return status


def note_interrupted(folder: Path) -> dict[str, Any]:
    """Note that a run that says it is running is not; whoever calls this holds the lock."""
    status = read_status(folder)
    if status.get("state") != RUNNING:
        return status
    last = _iso(datetime.fromtimestamp(_last_write(folder)))
    reason = (
        "its process ended without a word (killed, crashed, or the machine went down); the last "
        f"that it wrote was at {last}"
    )
    _log.warning("The run in %s was interrupted: %s.", folder, reason)
    status |= {"state": INTERRUPTED, "reason": reason, "ended": last}
    with contextlib.suppress(RunFolderError):
        write_json(folder / STATUS, status)
    return status


def how_it_stands(status: Mapping[str, Any]) -> str:
    """Return in a few words what became of a run."""
    state = status.get("state")
    if state == RUNNING:
        return f"its run goes on{stop_hint(status)}"
    if state in (COMPLETED, FAILED, STOPPED, INTERRUPTED):
        return f"its run is {state}"
    return "it holds no status of a run"


def stop_hint(status: Mapping[str, Any]) -> str:
    """Return how to stop a run that goes on; nothing if its id isn't known."""
    run_id = status.get("flwr_run_id")
    known = isinstance(run_id, str) and _RUN_ID.fullmatch(run_id)
    return f" (flwr stop {run_id} ends it)" if known else ""


def _last_write(folder: Path) -> float:
    """Return when a file in a run folder was last written, in seconds since 1970."""
    times = []
    for path in walk(folder):
        with contextlib.suppress(OSError):  # it may be gone meanwhile
            found = path.lstat()
            if path.name != LOCK and stat.S_ISREG(found.st_mode):
                times.append(found.st_mtime)
    return max(times, default=folder.lstat().st_mtime)
