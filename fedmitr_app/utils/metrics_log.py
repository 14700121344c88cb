"""``metrics.jsonl``: what every stage measures, written as it happens."""

import contextlib
import itertools
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedmitr_app.errors import RunFolderError
from fedmitr_app.utils.files import append_text, json_line

_log = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"

Record = Callable[..., object]
"""Takes a stage's name, and what was measured by name; see :meth:`MetricsLog.add`."""


class MetricsLog:
    """One JSON object a line, on disk a few seconds later: what a run that dies leaves behind.

    Used in a ``with`` block, which writes what is left at its end; it may be entered again.
    Stages that run side by side may share it.

    Parameters
    ----------
    folder : Path | None
        Where ``metrics.jsonl`` is appended to; None writes nothing. What stands there under
        another name too, as in a snapshot made of hard links, is not: it becomes
        ``metrics-<n>.jsonl``, and a new file goes on.
    every_seconds : float
        Shortest time between two writes.
    clock : Callable[[], float]
        Monotonic seconds.
    """

    def __init__(
        self,
        folder: Path | None,
        every_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = None if folder is None else folder / FILE_NAME
        self._every_seconds = every_seconds
        self._clock = clock
        self._last_write = clock()
        self._waiting: list[dict[str, Any]] = []
        self._lock = threading.RLock()

    def add(self, stage: str, **values: Any) -> None:
        """Note a line; a tensor is read only when it is written, so as not to stall its device.

        Raises
        ------
        RunFolderError
            When lines are due and cannot be written.
        """
        if self.path is None:
            return
        with self._lock:
            self._waiting.append({"stage": stage} | values)
            if self._clock() - self._last_write >= self._every_seconds:
                self.flush()

    def flush(self) -> None:
        """Write what was noted; raises as :meth:`add` does."""
        with self._lock:
            self._last_write = self._clock()
            if self.path is None or not self._waiting:
                return
            text = "".join(json_line(line) + "\n" for line in self._waiting)
            self._waiting.clear()
            _make_way(self.path)
            append_text(self.path, text)  # whole lines, so that a killed run leaves whole lines

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.flush()
        except RunFolderError:
            if kind is None:  # else the first error is the one to tell
                raise


def _make_way(path: Path) -> None:
    """Rename what may not be appended to: a log is no reason to end a run."""
    with contextlib.suppress(OSError):  # whatever is wrong, who writes says so
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            return
        names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(1))
        aside = next(name for name in names if not os.path.lexists(name))
        path.rename(aside)
        _log.warning(
            "%s has another name too, or is no ordinary file: it is %s now, and a new one goes on.",
            path,
            aside.name,
        )
