"""A round on disk: begun, finished, taken up again, or taken over from another run."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedmitr_app.errors import ConfigError, RunFolderError, UploadError
from fedmitr_app.files import reason_of, unwritable, write_atomically, write_json
from fedmitr_app.reading import (
    open_ordinary,
    open_tensors,
    read_json,
    require_folder,
    require_ordinary,
)
from fedmitr_app.reporting.status import how_it_stands, settle_status
from fedmitr_app.uploads.claims import Claims, Expected, check_claims
from fedmitr_app.uploads.outcome import RoundOutcome, round_facts, round_of
from fedmitr_app.uploads.spool import Rejection, Spool, read_spool
from fedmitr_app.uploads.upload import Upload
from fedmitr_app.uploads.validate import ArraySpec, check_names, check_shape

_log = logging.getLogger(__name__)

ROUND, UPLOADS, REJECTED = "round.json", "uploads", "rejected"
MAX_ROUND_BYTES = 2**24
"""Of its record, which has a line for each node."""
_SUFFIXES = (".json", ".safetensors")


class RoundFolder:
    """Where a round's uploads are, and where they come from if nobody need train for them.

    Parameters
    ----------
    run_dir : Path | None
        The uploads are in its ``uploads/``, reasons in ``rejected/``, and once the round is
        over its record in ``round.json``; None uses a temporary folder until :meth:`close`.
    resume : bool
        Go on with what a process that was stopped left in ``run_dir``.
    uploads_from : Path | None
        Another run's folder, whose finished round is taken over.
    exclude : Sequence[str]
        Keys of clients whose uploads are left out.
    """

    def __init__(
        self,
        run_dir: Path | None = None,
        resume: bool = False,
        uploads_from: Path | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        if resume and run_dir is None:
            raise ConfigError("resume = True needs a run_dir: the one where the round was stopped.")
        self.run_dir, self.resume = run_dir, resume
        self.uploads_from, self.exclude = uploads_from, tuple(exclude)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def path(self) -> Path:
        """The run folder, or the temporary one."""
        if self.run_dir is not None:
            return self.run_dir
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="fedmitr-")
        return Path(self._temporary.name)

    def close(self) -> None:
        """Remove the temporary folder, if there is one."""
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def earlier(self) -> RoundOutcome | None:
        """Return the round if it is over already; None if clients must train.

        Raises
        ------
        ConfigError
            If ``uploads_from`` holds no finished round, or ``exclude`` names somebody who sent
            nothing.
        RunFolderError
            If the round's record is damaged, or can't be taken over.
        """
        found = read_round(self.path) if self.resume else None
        if found is None and self.uploads_from is not None:
            _take_over(self.uploads_from, self.path)
            found = read_round(self.path)
        return None if found is None else leave_out(found, self.exclude)

    def spool(
        self, reference: Mapping[str, ArraySpec] | None = None, expected: Expected = Expected()
    ) -> Spool:
        """Return where to write uploads as they come.

        Those that are there from a run that was stopped are held to ``reference``, if it is
        given, and ``expected``, as those that come are.
        """

        def fits(upload: Upload) -> None:
            if reference is not None:
                check_fit(upload, reference, expected)

        return Spool(self.path / UPLOADS, self.path / REJECTED, self.resume, fits)

    def finish(self, outcome: RoundOutcome) -> None:
        """Note that the round is over, and what became of its replies.

        Raises
        ------
        RunFolderError
            If it cannot be written.
        """
        write_json(self.path / ROUND, round_facts(outcome))

    def without_excluded(self, outcome: RoundOutcome) -> RoundOutcome:
        """Leave out the excluded clients of a round just over; who sent nothing is warned of."""
        known = {upload.client for upload in outcome.accepted}
        for client in set(self.exclude) - known:
            _log.warning("server.exclude-clients names %r, which sent no usable upload.", client)
        return leave_out(outcome, known.intersection(self.exclude))


def read_round(run_dir: Path) -> RoundOutcome | None:
    """Return the round that ended in a run folder; None if none did.

    An upload whose file was damaged or lost since is among the rejected.

    Raises
    ------
    RunFolderError
        If the round's own record is no longer readable.
    """
    path = run_dir / ROUND
    if not os.path.lexists(path):
        return None
    try:
        outcome, accepted = round_of(read_json(path, MAX_ROUND_BYTES))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read back: {reason_of(error)}.") from error
    damaged: list[Rejection] = []
    # By their digests: without a damaged one, another that claims its key has it for itself.
    names = {digest: client for client, digest in accepted.items()}
    kept = [
        replace(upload, client=names.pop(upload.digest))
        for upload in read_spool(run_dir / UPLOADS, damaged.append)
        if upload.digest in names
    ]
    kept.sort(key=lambda upload: upload.client)
    told = {rejection.client for rejection in damaged}
    gone = [
        Rejection(client, "its file is gone.")
        for client in names.values()
        if client.partition("#")[0] not in told
    ]
    rejected = (*outcome.rejected, *damaged, *gone)
    return replace(
        outcome,
        accepted=tuple(kept),
        rejected=tuple(sorted(rejected, key=lambda r: (r.client, r.reason))),
    )


def require_fit(
    uploads: Iterable[Upload], reference: Mapping[str, ArraySpec], expected: Expected
) -> None:
    """Refuse uploads of an earlier round that are of another model than the server's.

    Raises
    ------
    ConfigError
        With the first difference.
    """
    for upload in uploads:
        try:
            check_fit(upload, reference, expected)
        except UploadError as error:
            raise ConfigError(
                f"The uploads of {upload.client!r} are of another model than this run's settings "
                f"make: {str(error).rstrip('.')}; set data.* and model.* as they were."
            ) from error


def check_fit(upload: Upload, reference: Mapping[str, ArraySpec], expected: Expected) -> None:
    """Refuse an upload on disk that is of another model than ``reference``.

    Raises
    ------
    UploadError
        With the first difference.
    """
    check_claims(
        Claims(architecture=upload.architecture, input_spec=upload.input_spec), expected
    )
    counts = upload.label_counts
    if counts is not None and expected.num_classes not in (None, len(counts)):
        raise UploadError(
            f"it counts the labels of {len(counts)} classes where the server has "
            f"{expected.num_classes}."
        )
    try:
        with open_tensors(upload.weights) as file:
            check_names(file.keys(), reference)
            for name, spec in reference.items():
                value = file.get_tensor(name)
                check_shape(name, value.shape, spec)
                if value.dtype != spec.dtype:
                    raise UploadError(f"{name} is {value.dtype} where the server has {spec.dtype}.")
    except (OSError, ValueError) as error:
        raise UploadError(f"{upload.weights} cannot be read back: {reason_of(error)}.") from error


def leave_out(outcome: RoundOutcome, clients: Iterable[str]) -> RoundOutcome:
    """Return a round without some clients' uploads.

    Raises
    ------
    ConfigError
        If one of them sent none, naming those that did.
    """
    known = {upload.client: upload.node for upload in outcome.accepted}
    left = sorted(set(clients))
    for client in left:
        if client not in known:
            names = ", ".join(map(repr, sorted(known)))
            raise ConfigError.bad_value("server.exclude-clients", client, f"some of {names}")
    kept = tuple(upload for upload in outcome.accepted if upload.client not in left)
    why = "server.exclude-clients names it"
    excluded = tuple(Rejection(client, why, known[client]) for client in left)
    return replace(outcome, accepted=kept, excluded=excluded)


def _take_over(source: Path, run_dir: Path) -> None:
    """Copy another run's finished round: its record, and its uploads as links or copies.

    What is copied is looked into where it then stands, out of others' reach.
    """
    stands = how_it_stands(settle_status(source))
    try:
        require_ordinary(source / ROUND)
        require_folder(source / UPLOADS)
        files = [path for path in (source / UPLOADS).iterdir() if path.suffix in _SUFFIXES]
        for path in files:
            require_ordinary(path)
    except OSError as error:
        told = f"{error.filename} can't be used: {reason_of(error)}; {stands}"
        raise ConfigError.bad_value(
            "server.uploads-from", str(source), f"the folder of a run whose round is over ({told})"
        ) from error
    try:
        (run_dir / UPLOADS).mkdir(mode=0o700, exist_ok=True)
        require_folder(run_dir / UPLOADS)
        for path in files:
            _bring(path, run_dir / UPLOADS / path.name)
        _copy(source / ROUND, run_dir / ROUND)
    except OSError as error:
        raise unwritable(run_dir / UPLOADS, error) from error


def _bring(source: Path, target: Path) -> None:
    """Link a file of one's own, which is never changed in place; copy any other."""
    if source.lstat().st_uid == getattr(os, "geteuid", int)():
        try:
            os.link(source, target, follow_symlinks=False)
            return
        except FileExistsError:
            return  # from a run that was stopped while it copied
        except OSError:  # such as another file system
            pass
    _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""

    def write(partial: Path) -> None:
        with open_ordinary(source) as file, partial.open("wb") as copy:
            shutil.copyfileobj(file, copy)

    write_atomically(target, write, private=True)
