"""The folder that a run leaves behind, and the only way to write into it."""

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from fedmitr_app.errors import RunFolderError
from fedmitr_app.files import reason_of, write_json
from fedmitr_app.reporting.global_model import save_global_model

_HINT = "set output.run-dir to a new or empty folder"


@dataclass(frozen=True)
class RunFolder:
    """One run's folder.

    Attributes
    ----------
    path : Path
        Absolute.
    run_id : str
        Unique, the same as in ``run.json``.
    seed : int
        The run's seed.
    started : str
        ISO 8601 with the machine's time zone.
    """

    path: Path
    run_id: str
    seed: int
    started: str

    @classmethod
    def create(cls, path: str, seed: int) -> "RunFolder":
        """Make a new run folder and claim it.

        Parameters
        ----------
        path : str
            ``output.run-dir``. A relative one is taken from the working directory of
            this process; "" means ``fedmitr-runs/<date>-<time>-seed<seed>`` there.
        seed : int
            The run's seed.

        Raises
        ------
        RunFolderError
            When the folder holds anything already, or cannot be made or written.
        """
        target = _new_default(seed) if path == "" else _claimable(path)
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        folder = cls(path=target, run_id=uuid.uuid4().hex, seed=seed, started=started)
        try:
            # Opening with "x" is the claim: of two runs that start at once, one loses.
            with (target / "run.json").open("x"):
                pass
            for sub in folder._subfolders():
                sub.mkdir()
        except FileExistsError as error:
            raise _taken(target) from error
        except OSError as error:
            raise _unusable(target, error) from error
        folder._write_state("running")
        return folder

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

    def save_model(
        self,
        state: Mapping[str, Tensor],
        architecture: Mapping[str, Any],
        input_spec: Mapping[str, Any],
        class_names: Sequence[str],
    ) -> Path:
        """Write the global model; see :func:`save_global_model`."""
        return save_global_model(self.path, state, architecture, input_spec, class_names)

    def finish(self, status: str) -> None:
        """Record how the run ended ("completed", "failed"), and drop empty folders."""
        for sub in self._subfolders():
            if sub.is_dir() and not any(sub.iterdir()):
                sub.rmdir()
        self._write_state(status)

    def _subfolders(self) -> tuple[Path, ...]:
        return self.uploads, self.rejected, self.pool, self.figures

    def _write_state(self, state: str) -> None:
        record = {"id": self.run_id, "state": state, "seed": self.seed, "started": self.started}
        if state != "running":
            record["ended"] = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(self.path / "run.json", record)


def _new_default(seed: int) -> Path:
    """Make a folder named after the moment; runs of the same second get a number."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-seed{seed}"
    parent = Path.cwd() / "fedmitr-runs"
    for attempt in range(1, 1000):
        target = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            target.mkdir(parents=True)
        except FileExistsError:
            if not parent.is_dir():
                break
        except OSError as error:
            raise _unusable(target, error) from error
        else:
            return target
    raise _taken(target)


def _claimable(path: str) -> Path:
    """Make the folder that the user named, or take it over if it is empty."""
    try:
        # expanduser raises RuntimeError for an unknown ~user; a null byte ValueError.
        target = Path(os.path.abspath(Path(path).expanduser()))
        target.mkdir(parents=True, exist_ok=True)
        empty = not any(target.iterdir())
    except FileExistsError as error:
        raise RunFolderError(
            f"output.run-dir = {path!r} is not allowed: a file stands there, {_HINT}."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise _unusable(path, error) from error
    if not empty:
        raise _taken(target)
    return target


def _taken(target: Path) -> RunFolderError:
    what = "another run" if (target / "run.json").exists() else "other files"
    return RunFolderError(
        f"output.run-dir = {str(target)!r} is not allowed: it already holds {what}, {_HINT}."
    )


def _unusable(target: Path | str, error: BaseException) -> RunFolderError:
    return RunFolderError(
        f"output.run-dir = {str(target)!r} cannot be used: {reason_of(error)}, "
        "set it to a folder that this process may write."
    )
