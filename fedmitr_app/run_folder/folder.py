"""The folder that a run leaves behind, and the only way to write into it."""

import contextlib
import shutil
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from fedmitr_app.errors import RunFolderError
from fedmitr_app.run_folder.claiming import (
    HINT,
    left_behind,
    make_folder,
    new_default,
    require_ours,
    require_plain,
    unusable,
)
from fedmitr_app.run_folder.global_model import save_global_model
from fedmitr_app.run_folder.status import (
    FAILED,
    RUNNING,
    STATUS,
    STOPPED,
    lock_of,
    now,
    read_status,
    stop_hint,
)
from fedmitr_app.utils.files import TEMPORARY, write_json
from fedmitr_app.utils.reading import read_table, walk
from fedmitr_app.utils.text import harmless

_LONGEST_REASON = 2000
_STOPPED = "it was stopped (flwr stop, Ctrl+C or a signal), or Flower ended around it"


@dataclass(frozen=True)
class RunFolder:
    """One run's folder.

    Attributes
    ----------
    path : Path
        Absolute.
    run_id : str
        Unique, the same as in ``status.json``.
    seed : int
        The run's seed.
    started : str
        ISO 8601 with the machine's time zone, of the first process that worked in it.
    settings : Mapping[str, Any] | None
        What the run began with, if this process goes on with it; None if it is new.
    completed : bool
        Whether there is nothing left to do.
    flwr_run_id : int
        What Flower calls the run, as in ``flwr stop``; 0 if it doesn't know of it.
    """

    path: Path
    run_id: str
    seed: int
    started: str
    lock: FileLock = field(repr=False, compare=False)
    settings: Mapping[str, Any] | None = None
    completed: bool = False
    flwr_run_id: int = 0
    _ending: threading.RLock = field(
        default_factory=threading.RLock, init=False, repr=False, compare=False
    )
    """Held while it is decided how the run ended: a thread and an exit handler may both say."""

    @classmethod
    def create(
        cls, path: str, seed: int, resume: bool = False, flwr_run_id: int = 0
    ) -> "RunFolder":
        """Make a new run folder and claim it.

        Parameters
        ----------
        path : str
            ``output.run-dir``. A relative one is taken from the working directory of
            this process; "" means ``fedmitr-runs/<date>-<time>-seed<seed>`` there.
        seed : int
            The run's seed.
        resume : bool
            Take over the run that was stopped in the folder, if one was.
        flwr_run_id : int
            See above.

        Raises
        ------
        RunFolderError
            When the folder holds anything else, or what is neither file nor folder; cannot be
            made or written; or is being worked in by another process.
        """
        target = new_default(seed) if path == "" else make_folder(path)
        require_ours(target, resume)
        try:
            lock = lock_of(target)
            lock.acquire()
            require_ours(target, resume)  # another process may have been sooner
            require_plain(target)
            folder = cls(target, uuid.uuid4().hex, seed, now(), lock, flwr_run_id=flwr_run_id)
            if (found := left_behind(target)) is not None:
                folder = replace(folder, **found)
            if folder.settings is None:
                folder.begin()
        except Timeout as error:
            raise RunFolderError(
                f"output.run-dir = {str(target)!r} is not allowed: another process is working in "
                f"it{stop_hint(read_status(target))}, {HINT}."
            ) from error
        except RunFolderError:
            lock.release()
            raise
        except OSError as error:
            raise unusable(target, error) from error
        return folder

    def begin(self) -> None:
        """Note that a process works here; a run that is gone on with is left alone until then.

        Raises
        ------
        RunFolderError
            When the folder cannot be written.
        """
        try:
            for path in [*walk(self.path)]:
                if path.name.startswith(".") and path.name.endswith(TEMPORARY):
                    # Half written. Whoever wrote it may be ending only now.
                    shutil.rmtree(path, ignore_errors=True)
            self._write_state(RUNNING)
            for sub in self._subfolders():
                sub.mkdir(mode=0o777 if sub == self.figures else 0o700, exist_ok=True)
        except OSError as error:
            raise unusable(self.path, error) from error

    def close(self) -> None:
        """Let other processes work in the folder."""
        self.lock.release()

    @property
    def uploads(self) -> Path:
        """What clients sent, one weights file and one JSON each."""
        return self.path / "uploads"

    @property
    def rejected(self) -> Path:
        """Uploads that could not be used."""
        return self.path / "rejected"

    @property
    def pool(self) -> Path:
        """Synthetic images, targets, kept patches and provenance."""
        return self.path / "pool"

    @property
    def figures(self) -> Path:
        """The report's figures, as PNG."""
        return self.path / "figures"

    @property
    def clients(self) -> Path:
        """The per-client table."""
        return self.path / "clients.csv"

    @property
    def report(self) -> Path:
        """The page that a person reads."""
        return self.path / "report.html"

    def write_json(self, name: str, data: Mapping[str, Any]) -> Path:
        """Write ``<name>`` (such as ``config.json``) atomically and return its path.

        Tensors and arrays become lists; NaN and infinities become null.

        Raises
        ------
        RunFolderError
            When the file cannot be written.
        """
        write_json(self.path / name, data)
        return self.path / name

    def read_json(self, name: str) -> dict[str, Any]:
        """Return what :meth:`write_json` wrote; nothing if it is not there or damaged."""
        try:
            return read_table(self.path / name)
        except (OSError, ValueError):
            return {}

    def save_model(
        self,
        state: Mapping[str, Tensor],
        architecture: Mapping[str, Any],
        input_spec: Mapping[str, Any],
        class_names: Sequence[str],
    ) -> Path:
        """Write the global model; see :func:`save_global_model`."""
        return save_global_model(self.path, state, architecture, input_spec, class_names)

    def drop(self, *names: str) -> None:
        """Remove files and folders that only a run that was stopped would need."""
        for name in names:
            shutil.rmtree(self.path / name, ignore_errors=True)
            with contextlib.suppress(OSError):
                (self.path / name).unlink()

    def finish(self, state: str, reason: str = "") -> None:
        """Record how the run ended (``COMPLETED``, ``FAILED``) and why; drop empty folders."""
        for sub in self._subfolders():
            if sub.is_dir() and not any(sub.iterdir()):
                sub.rmdir()
        with self._ending:
            self._write_state(state, reason)

    def end_by(self, error: BaseException) -> None:
        """Record that an error ended the run, unless how it ended is on record already."""
        if not isinstance(error, Exception):  # Ctrl+C, exit, or Flower's own: nothing went wrong
            self.stop()
            return
        # The first error is the one to tell.
        with self._ending, contextlib.suppress(RunFolderError, OSError):
            if self._goes_on():
                self.finish(FAILED, harmless(str(error) or type(error).__name__, _LONGEST_REASON))

    def stop(self) -> None:
        """Record that the run was stopped, if this process is still at work in it.

        May be called in any thread, and when a process ends.
        """
        with self._ending, contextlib.suppress(RunFolderError, OSError):
            if self._goes_on():
                self._write_state(STOPPED, _STOPPED)

    def _goes_on(self) -> bool:
        return self.lock.is_locked and read_status(self.path).get("state", RUNNING) == RUNNING

    def _subfolders(self) -> tuple[Path, ...]:
        return self.uploads, self.rejected, self.pool, self.figures

    def _write_state(self, state: str, reason: str = "") -> None:
        record = {"id": self.run_id, "state": state, "seed": self.seed, "started": self.started}
        if self.flwr_run_id:
            record["flwr_run_id"] = str(self.flwr_run_id)  # beyond what JSON's readers count to
        if reason:
            record["reason"] = reason
        if state != RUNNING:
            record["ended"] = now()
        write_json(self.path / STATUS, record)
