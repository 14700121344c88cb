"""Uploads on disk, written as they arrive, so that the server's memory stays flat.

Each upload is ``<client>.<digest>.safetensors`` with a manifest ``<client>.<digest>.json``
written after it: an upload without a manifest was not finished and doesn't count. Class
moments, of a client that shares them, stand beside as ``<client>.<digest>.moments.safetensors``.
Each appears by an atomic rename.
"""

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fedmitr_app.errors import RunFolderError, UploadError
from fedmitr_app.uploads.manifest import (
    UnreadableUpload,
    make_manifest,
    manifest_name,
    rank,
    read_upload,
)
from fedmitr_app.uploads.metadata import Metadata
from fedmitr_app.uploads.moments import ClassMoments
from fedmitr_app.uploads.upload import Upload, moments_file, save_state
from fedmitr_app.utils.files import (
    arrays_digest,
    reason_of,
    unwritable,
    write_atomically,
    write_json,
)
from fedmitr_app.utils.reading import read_table, require_folder
from fedmitr_app.utils.text import harmless

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rejection:
    """One reply without a usable upload, and why, in one sentence.

    Parameters
    ----------
    client : str
        The key that it gives, or what its node is called. Nothing proves the former.
    reason : str
        What both hold is made harmless to print: the words may be a stranger's.
    node : int
        Flower's id of the node that sent it, or should have; 0 if that isn't known.
    """

    client: str
    reason: str
    node: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "client", harmless(self.client))
        object.__setattr__(self, "reason", harmless(self.reason))


class Spool:
    """Where a round's uploads and rejections are written.

    The order of arrival changes nothing. Two uploads that claim one client key are both kept,
    told apart by their weights: nobody loses its place to who claims its name. The same weights
    under one key again are a repetition, and dropped.

    Parameters
    ----------
    uploads : Path
        Folder for the uploads; made if absent, and must hold none yet.
    rejected : Path
        Folder for the reasons, ``<n>.json``; made if absent.
    resume : bool
        Go on with a round that was stopped: uploads that are there count, if their clients
        gave a key. The others can't be told from what the same clients will send again: they
        are put aside, as damaged ones are, among the rejected as ``<file>.aside``.
    require_compatible : Callable[[Upload], None], optional
        Raises an error for an upload that is there and not of this round's model.

    Raises
    ------
    RunFolderError
        If a folder can't be used, or holds uploads that can't be read now.
    """

    def __init__(
        self,
        uploads: Path,
        rejected: Path,
        resume: bool = False,
        require_compatible: Callable[[Upload], None] = lambda upload: None,
    ) -> None:
        self.uploads = uploads
        self.rejected = rejected
        self.rejections: list[Rejection] = []
        self.repeated = 0
        self.here: dict[str, set[int]] = {}
        """Keys of the uploads that were there before, and the nodes that sent them."""
        self._digests: set[str] = set()
        for folder in (uploads, rejected):
            try:
                # Uploads can be inverted into images like those they were trained on.
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                require_folder(folder)
            except OSError as error:
                raise unwritable(folder, error) from error
        if resume:
            self._take_up(require_compatible)
        elif any(uploads.glob("*.json")):
            raise RunFolderError(
                f"{uploads} already holds uploads of another round: choose another run folder."
            )

    def add(
        self,
        arrays: Mapping[str, np.ndarray],
        metadata: Metadata,
        moments: ClassMoments | None = None,
        node: int = 0,
    ) -> str:
        """Write one checked upload, and return the client key it is kept under.

        Parameters
        ----------
        arrays : Mapping[str, np.ndarray]
            From :func:`~fedmitr_app.uploads.check_arrays`.
        metadata : Metadata
            From :func:`~fedmitr_app.uploads.check_metadata`; without a client key the
            upload is known by its weights, ``weights-<12 hex digits>``.
        moments : ClassMoments | None
            From :func:`~fedmitr_app.uploads.check_moments`, if the client shares them.
        node : int
            That it came from.
        """
        digest = arrays_digest(arrays)
        self._digests.add(digest)
        client = metadata.client or _keyless(digest)
        shared = {} if moments is None else _by_rows(moments.arrays())
        moments_digest = arrays_digest(shared) if shared else ""
        manifest = make_manifest(client, metadata, node, digest, moments_digest)
        path = self.uploads / manifest_name(client, digest)
        if path.exists():
            self.repeated += 1
            if rank(read_table(path)) <= rank(manifest):
                return client
        weights = path.with_suffix(".safetensors")
        if shared:
            file = moments_file(weights)
            write_atomically(file, lambda partial: save_file(shared, partial), private=True)
        else:
            moments_file(weights).unlink(missing_ok=True)  # of the repetition that yields to this
        state = _by_rows(arrays)
        write_atomically(weights, lambda partial: save_state(state, partial), private=True)
        write_json(path, manifest, private=True)
        return client

    @property
    def distinct(self) -> int:
        """How many uploads there are so far, copies apart, with what was there before."""
        return len(self._digests)

    def _take_up(self, require_compatible: Callable[[Upload], None]) -> None:
        aside = {}
        for path in self.uploads.glob("*.json"):
            try:
                upload = read_upload(path)
            except UnreadableUpload as error:  # too many open files, a network that fails
                raise RunFolderError(
                    f"{error} No upload was touched: mend that, or take the file away, and go on."
                ) from error
            except UploadError as error:
                aside[path] = str(error)
                continue
            require_compatible(upload)
            if upload.client == _keyless(upload.digest):
                aside[path] = f"{upload.client} has no client key."
                continue
            self._digests.add(upload.digest)
            self.here.setdefault(upload.client, set()).add(upload.node)
        # Only now: what ends with an error above has changed nothing.
        for path in self.rejected.glob("*.json"):
            _remove(path)  # who was refused will be asked again
        for path, reason in aside.items():
            kept = f"its files are kept in {self.rejected}"
            _log.warning("%s Whoever sent it is asked again; %s.", reason, kept)
            for file in _files_of(path.with_suffix(".safetensors")):
                _put_aside(file, self.rejected)

    def reject(self, rejection: Rejection) -> None:
        """Note, and log, that a reply could not be used."""
        _log.warning("Rejected %s: %s", rejection.client, rejection.reason)
        self.rejections.append(rejection)
        path = self.rejected / f"{len(self.rejections)}.json"
        write_json(path, dataclasses.asdict(rejection), private=True)

    def settle(self) -> list[Upload]:
        """Return what may be fused, sorted by client key, once no more uploads come.

        Rejected here are files that no longer are what was written, and all but the first of
        uploads with the same weights under different keys, whose files are removed: no two
        honest clients end on the same numbers, and a copy would only add weight.
        """
        kept: dict[str, Upload] = {}
        for upload in read_spool(self.uploads, self.reject):
            first = kept.setdefault(upload.digest, upload)
            if first is upload:
                continue
            why = f"its weights are those of {first.client!r} to the last bit, and count once."
            self.reject(Rejection(upload.client, why, upload.node))
            for file in _files_of(upload.weights):
                _remove(file)
        return list(kept.values())


def read_spool(folder: Path, damaged: Callable[[Rejection], None] | None = None) -> list[Upload]:
    """Return the uploads in a folder, sorted by client key; weights are not loaded.

    Parameters
    ----------
    folder : Path
        Where a :class:`Spool` wrote them.
    damaged : Callable[[Rejection], None], optional
        Called for each upload whose file no longer is what was written; without it
        the first one raises.

    Raises
    ------
    UploadError
        In one sentence, for a manifest or weights file that is gone or changed.
    """
    uploads = []
    for path in folder.glob("*.json"):
        try:
            uploads.append(read_upload(path))
        except UploadError as error:
            if damaged is None:
                raise
            damaged(Rejection(path.stem.rpartition(".")[0] or path.stem, str(error)))
    return _told_apart(sorted(uploads, key=lambda upload: (upload.client, upload.digest)))


def _keyless(digest: str) -> str:
    """Name an upload whose client gave no key."""
    return f"weights-{digest[:12]}"


def _files_of(weights: Path) -> tuple[Path, Path, Path]:
    """Return an upload's files, the manifest first: without it nothing counts."""
    return weights.with_suffix(".json"), weights, moments_file(weights)


def _put_aside(file: Path, folder: Path) -> None:
    """Move a file to where nobody reads it but a person: what seems damaged may be good."""
    try:
        os.replace(file, folder / f"{file.name}.aside")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RunFolderError(f"{file} cannot be moved to {folder}: {reason_of(error)}.") from error


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:  # such as a folder of that name
        raise RunFolderError(f"{file} cannot be removed: {reason_of(error)}.") from error


def _told_apart(uploads: list[Upload]) -> list[Upload]:
    """Name the uploads that claim one client key ``<key>#<digest>``."""
    claims = Counter(upload.client for upload in uploads)
    for client, count in claims.items():
        if count > 1:
            _log.warning("%d uploads claim the client key %r: all are kept.", count, client)
    return [
        replace(upload, client=f"{upload.client}#{upload.digest[:8]}")
        if claims[upload.client] > 1
        else upload
        for upload in uploads
    ]


def _by_rows(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # safetensors writes an array's memory as it lies: one that lies column by column, as a
    # transpose does, would come back scrambled.
    return {name: np.asarray(value, order="C") for name, value in arrays.items()}
