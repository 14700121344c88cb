"""A round on disk: begun, finished, taken up again, or taken over from another run."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedmitr_app.errors import ConfigError, RunFolderError
from fedmitr_app.run_folder.status import how_it_stands, settle_status
from fedmitr_app.uploads.compatibility import require_compatible
from fedmitr_app.uploads.metadata import Expected
from fedmitr_app.uploads.outcome import RoundOutcome, round_facts, round_of
from fedmitr_app.uploads.spool import Rejection, Spool, read_spool
from fedmitr_app.uploads.upload import Upload
from fedmitr_app.uploads.validate import ArraySpec
from fedmitr_app.utils.files import reason_of, unwritable, write_atomically, write_json
from fedmitr_app.utils.reading import open_ordinary, read_json, require_folder, require_ordinary

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
        over its record in ``round.json``; None uses a temporary folder while it is worked
        in (``with``), which outlives errors and a process that is killed.
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
        self._temporary: Path | None = None
        self._begun = self._over = False

    @property
    def path(self) -> Path:
        """The run folder, or the temporary one."""
        if self.run_dir is not None:
            return self.run_dir
        if self._temporary is None:
            # Not a TemporaryDirectory, which goes with the process, however that ends.
            self._temporary = Path(tempfile.mkdtemp(prefix="fedmitr-"))
        return self._temporary

    def __enter__(self) -> "RoundFolder":
        """Begin the work in it."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Remove the temporary folder, if there is one; keep the uploads if there was an error.

        Whatever the error is, nobody's training may be lost by it: the log says where the uploads
        are, and so does a note on the error, for who shows that last.
        """
        if error is not None and (told := self._keep()):
            error.add_note(told)
            _log.error(told)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary = None
        self._begun = self._over = False

    def _keep(self) -> str:
        """Say where the uploads stay, and how to go on from there; nothing if none came."""
        if not (self._begun or self._over) or not any((self.path / UPLOADS).glob("*.json")):
            return ""
        where, tail = self.path, ""
        if self._temporary is not None and self.uploads_from is not None and self._over:
            where = self.uploads_from  # whose uploads are in the temporary folder as links
        elif self._temporary is not None:
            tail = " It is a temporary folder: move it to where it lasts."
            self._temporary = None
        place = repr(str(where.resolve()))
        how = (
            f"server.uploads-from={place} (in code: uploads_from={place}) fuses them again with no "
            "new training."
            if self._over
            else f"output.run-dir={place} output.resume=true (in code: run_dir={place}, "
            "resume=True) goes on with the round."
        )
        return f"The uploads are kept in {place}: {how}{tail}"

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
        self._over = found is not None
        return None if found is None else leave_out(found, self.exclude)

    def spool(
        self, reference: Mapping[str, ArraySpec] | None = None, expected: Expected = Expected()
    ) -> Spool:
        """Return where to write uploads as they come.

        Those that are there from a run that was stopped are held to ``reference``, if it is
        given, and ``expected``, as those that come are.

        Raises
        ------
        ConfigError
            If they are of another model: they stay as they are, for a server that has theirs.
        RunFolderError
            If the folder can't be read or written.
        """

        def fits(upload: Upload) -> None:
            if reference is not None:
                require_compatible([upload], reference, expected)

        spool = Spool(self.path / UPLOADS, self.path / REJECTED, self.resume, fits)
        self._begun = True
        return spool

    def finish(self, outcome: RoundOutcome) -> None:
        """Note that the round is over, and what became of its replies.

        Raises
        ------
        RunFolderError
            If it cannot be written.
        """
        write_json(self.path / ROUND, round_facts(outcome))
        self._over = True

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
