"""Uploads on disk, written as they arrive, so that the server's memory stays flat.

Each upload is ``<client>.<digest>.safetensors`` with a manifest ``<client>.<digest>.json``
written after it: an upload without a manifest was not finished and doesn't count. Class
moments, of a client that shares them, stand beside as ``<client>.<digest>.moments.safetensors``.
Each appears by an atomic rename.
"""

import dataclasses
import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fedmitr_app.errors import RunFolderError, UploadError
from fedmitr_app.files import arrays_digest, unwritable, write_atomically, write_json
from fedmitr_app.models.spec import InputSpec
from fedmitr_app.uploads.claims import Claims
from fedmitr_app.uploads.moments import ClassMoments
from fedmitr_app.uploads.upload import Upload, moments_file, save_state

_log = logging.getLogger(__name__)

_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,79}")
_DIGITS = 16  # of the weights digest, in file names


@dataclass(frozen=True)
class Rejection:
    """One reply that could not be used, and why, in one sentence."""

    client: str
    reason: str


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
        gave a key. The others can't be told from what the same clients will send again.
    """

    def __init__(self, uploads: Path, rejected: Path, resume: bool = False) -> None:
        self.uploads = uploads
        self.rejected = rejected
        self.rejections: list[Rejection] = []
        self.repeated = 0
        self.here: dict[str, set[int]] = {}
        """Keys of the uploads that were there before, and the nodes that sent them."""
        self._digests: set[str] = set()
        for folder in (uploads, rejected):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable(folder, error) from error
        if resume:
            self._take_up()
        elif any(uploads.glob("*.json")):
            raise RunFolderError(
                f"{uploads} already holds uploads of another round: choose another run folder."
            )

    def add(
        self,
        arrays: Mapping[str, np.ndarray],
        claims: Claims,
        moments: ClassMoments | None = None,
        node: int = 0,
    ) -> str:
        """Write one checked upload, and return the client key it is kept under.

        Parameters
        ----------
        arrays : Mapping[str, np.ndarray]
            From :func:`~fedmitr_app.uploads.check_arrays`.
        claims : Claims
            From :func:`~fedmitr_app.uploads.check_claims`; without a client key the
            upload is known by its weights, ``weights-<12 hex digits>``.
        moments : ClassMoments | None
            From :func:`~fedmitr_app.uploads.check_moments`, if the client shares them.
        node : int
            That it came from.
        """
        digest = arrays_digest(arrays)
        self._digests.add(digest)
        client = claims.client or _keyless(digest)
        shared = {} if moments is None else _by_rows(moments.arrays())
        manifest = {**_manifest(client, digest, claims), "node": node}
        manifest["moments"] = arrays_digest(shared) if shared else ""
        path = self.uploads / f"{safe_name(client)}.{digest[:_DIGITS]}.json"
        if path.exists():
            self.repeated += 1
            if _rank(json.loads(path.read_text())) <= _rank(manifest):
                return client
        weights = path.with_suffix(".safetensors")
        if shared:
            write_atomically(moments_file(weights), lambda file: save_file(shared, file))
        else:
            moments_file(weights).unlink(missing_ok=True)  # of the repetition that yields to this
        write_atomically(weights, lambda file: save_state(_by_rows(arrays), file))
        write_json(path, {**manifest, "sha256": _sha256(weights)})
        return client

    @property
    def distinct(self) -> int:
        """How many uploads there are so far, copies apart, with what was there before."""
        return len(self._digests)

    def _take_up(self) -> None:
        for path in self.rejected.glob("*.json"):
            path.unlink()  # who was refused will be asked again
        for path in self.uploads.glob("*.json"):
            try:
                upload = _read_upload(path)
                if upload.client != _keyless(upload.digest):
                    self._digests.add(upload.digest)
                    self.here.setdefault(upload.client, set()).add(upload.node)
                    continue
            except UploadError:
                pass
            _remove(path.with_suffix(".safetensors"))

    def reject(self, client: str, reason: str) -> None:
        """Note, and log, that a reply could not be used."""
        _log.warning("Rejected %s: %s", client, reason)
        rejection = Rejection(client, reason)
        self.rejections.append(rejection)
        path = self.rejected / f"{len(self.rejections)}.json"
        write_json(path, dataclasses.asdict(rejection))

    def settle(self) -> list[Upload]:
        """Return what may be fused, sorted by client key, once no more uploads come.

        Rejected here are files that no longer are what was written, and all but the first of
        uploads with the same weights under different keys, whose files are removed: no two
        honest clients end on the same numbers, and a copy would only add weight.
        """
        kept: dict[str, Upload] = {}
        for upload in read_spool(self.uploads, lambda bad: self.reject(bad.client, bad.reason)):
            first = kept.setdefault(upload.digest, upload)
            if first is upload:
                continue
            self.reject(
                upload.client,
                f"its weights are those of {first.client!r} to the last bit, and count once.",
            )
            _remove(upload.weights)
        return list(kept.values())


def read_spool(
    folder: Path, damaged: Callable[[Rejection], None] | None = None
) -> list[Upload]:
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
            uploads.append(_read_upload(path))
        except UploadError as error:
            if damaged is None:
                raise
            damaged(Rejection(path.stem.rpartition(".")[0] or path.stem, str(error)))
    return _told_apart(sorted(uploads, key=lambda upload: (upload.client, upload.digest)))


def _keyless(digest: str) -> str:
    """Name an upload whose client gave no key."""
    return f"weights-{digest[:12]}"


def _remove(weights: Path) -> None:
    # The manifest first: without it nothing counts.
    for file in (weights.with_suffix(".json"), weights, moments_file(weights)):
        file.unlink(missing_ok=True)


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


def safe_name(client: str) -> str:
    """Return a file name for a client key: harmless, and different for different keys.

    A short lower-case key is its own name. Any other gets a hash of the whole key
    behind a ``~``, which no plain name contains, so none can pose as another, also
    on file systems that don't tell capitals apart.
    """
    if _PLAIN_NAME.fullmatch(client):
        return client
    readable = re.sub(r"[^a-z0-9_-]+", "_", client.lower())[:40]
    return f"{readable}~{hashlib.sha256(client.encode()).hexdigest()[:16]}"


def _manifest(client: str, digest: str, claims: Claims) -> dict[str, Any]:
    spec = claims.input_spec
    return {
        "client": client,
        "num_examples": claims.num_examples,
        "digest": digest,
        "architecture": claims.architecture,
        "input_spec": None if spec is None else spec.to_dict(),
        "label_counts": None if claims.label_counts is None else list(claims.label_counts),
        "metrics": dict(claims.metrics),
    }


def _rank(manifest: dict[str, Any]) -> tuple[float, str]:
    facts = {key: value for key, value in manifest.items() if key != "sha256"}
    count = manifest["num_examples"]
    return math.inf if count is None else count, json.dumps(facts, sort_keys=True)


def _read_upload(path: Path) -> Upload:
    weights = path.with_suffix(".safetensors")
    try:
        manifest = json.loads(path.read_text())
        intact = _sha256(weights) == manifest.pop("sha256")
        spec, counts = manifest.pop("input_spec"), manifest.pop("label_counts")
        upload = Upload(
            **manifest,
            weights=weights,
            input_spec=_input_spec(spec),
            label_counts=None if counts is None else tuple(counts),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UploadError(f"{path} and its weights cannot be read back: {error}.") from error
    if not intact:
        raise UploadError(f"{weights} is not what was written: its SHA-256 differs.")
    if upload.moments:
        _require_moments(moments_file(weights), upload.moments)
    return upload


def _require_moments(file: Path, digest: str) -> None:
    try:
        intact = arrays_digest(load_file(file)) == digest
    except (OSError, SafetensorError) as error:
        raise UploadError(f"{file} cannot be read back: {error}.") from error
    if not intact:
        raise UploadError(f"{file} is not what was written: its values differ.")


def _by_rows(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # safetensors writes an array's memory as it lies: one that lies column by column, as a
    # transpose does, would come back scrambled.
    return {name: np.asarray(value, order="C") for name, value in arrays.items()}


def _input_spec(table: dict[str, Any] | None) -> InputSpec | None:
    return None if table is None else InputSpec.from_dict(table)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
