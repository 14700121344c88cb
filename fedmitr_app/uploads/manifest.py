"""What is known of an upload beside its weights, as JSON, and how both are read back.

A folder of uploads may come from somebody else. What is read is held to what was checked when
uploads came in; a digest only proves that files belong together.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedmitr_app.errors import UploadError
from fedmitr_app.uploads.class_means import HEAD
from fedmitr_app.uploads.metadata import Metadata, check_metadata
from fedmitr_app.uploads.moments import check_moments, moments_reference
from fedmitr_app.uploads.upload import Upload, moments_file
from fedmitr_app.uploads.validate import check_arrays
from fedmitr_app.utils.files import arrays_digest, reason_of, sorted_digest
from fedmitr_app.utils.reading import MAX_INTEGER, open_tensors, read_table

_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,79}")
_DIGITS = 16  # of the weights digest, in file names
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = {
    "client",
    "num_examples",
    "digest",
    "architecture",
    "input_spec",
    "label_counts",
    "metrics",
    "node",
    "moments",
}

Shapes = dict[str, tuple[int, ...]]


class UnreadableUpload(UploadError):
    """The system doesn't let an upload's files be read: nothing says that they are damaged."""


def make_manifest(
    client: str, metadata: Metadata, node: int, digest: str, moments: str
) -> dict[str, Any]:
    """Return what :func:`read_upload` will want to know; digests as in :class:`Upload`."""
    spec = metadata.input_spec
    return {
        "client": client,
        "num_examples": metadata.num_examples,
        "digest": digest,
        "architecture": metadata.architecture,
        "input_spec": None if spec is None else spec.to_dict(),
        "label_counts": None if metadata.label_counts is None else list(metadata.label_counts),
        "metrics": dict(metadata.metrics),
        "node": node,
        "moments": moments,
    }


def manifest_name(client: str, digest: str) -> str:
    """Return the file name of an upload's manifest; those of its arrays differ in the suffix."""
    return f"{safe_name(client)}.{digest[:_DIGITS]}.json"


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


def rank(manifest: dict[str, Any]) -> tuple[float, str]:
    """Return a key by which the same of two manifests wins, whichever came first."""
    count = manifest["num_examples"]
    return math.inf if count is None else count, json.dumps(manifest, sort_keys=True)


def read_upload(path: Path) -> Upload:
    """Read a manifest, and check it and the files that it belongs to.

    Raises
    ------
    UploadError
        In one sentence, if one of them is gone, damaged, or nothing that a client may send;
        ``UnreadableUpload`` if it is there and can't be read.
    """
    at, weights = path, path.with_suffix(".safetensors")
    try:
        upload = _upload(read_table(path), weights)
        if path.name != manifest_name(upload.client, upload.digest):
            raise ValueError("its name is that of another upload")
        at, shapes = weights, Shapes()
        if _digest(weights, shapes) != upload.digest:
            raise ValueError("it is not what was written, its SHA-256 differs")
        if upload.moments:
            at = moments_file(weights)
            # The classifier's shape is that of the sums of class moments.
            _require_moments(upload, shapes.get(HEAD[0]))
    except (OSError, ValueError, UploadError) as error:
        why = reason_of(error).rstrip(".")
        refused = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        kind = UnreadableUpload if refused else UploadError
        raise kind(f"{at} cannot be read back: {why}.") from error
    return upload


def _upload(raw: dict[str, Any], weights: Path) -> Upload:
    """Return a manifest's upload, its values as :func:`check_metadata` gives them."""
    if raw.keys() != _FIELDS:
        raise ValueError("it does not have a manifest's fields")
    digest, moments, node = raw["digest"], raw["moments"], raw["node"]
    if not _is_digest(digest) or not (moments == "" or _is_digest(moments)):
        raise ValueError("its digests are no SHA-256 in hex")
    if not isinstance(node, int) or isinstance(node, bool) or not 0 <= node < MAX_INTEGER:
        raise ValueError("its node is no id")
    if not isinstance(raw["client"], str) or not isinstance(raw["metrics"], dict):
        raise ValueError("its client is no text, or its metrics are no table")
    if not isinstance(raw["architecture"], dict | None):
        raise ValueError("its architecture is no table")
    names = ("num_examples", "client", "input_spec", "label_counts", "metrics")
    metadata, notes = check_metadata(Metadata(**{name: raw[name] for name in names}))
    # A number of examples that could not be right was left out when the upload came.
    if left := notes[raw["num_examples"] is None :]:
        raise ValueError(left[0])
    if metadata.metrics != raw["metrics"]:
        raise ValueError("its metrics are not some finite numbers by name")
    return Upload(
        client=metadata.client,
        num_examples=metadata.num_examples,
        weights=weights,
        architecture=raw["architecture"],
        input_spec=metadata.input_spec,
        metrics=metadata.metrics,
        label_counts=metadata.label_counts,
        digest=digest,
        moments=moments,
        node=node,
    )


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _digest(weights: Path, shapes: Shapes) -> str:
    """Return the digest of the arrays in a file, read one by one, and note their shapes."""
    with open_tensors(weights) as stored:

        def pairs() -> Iterator[tuple[str, np.ndarray]]:
            for name in sorted(stored.keys()):
                value = stored.get_tensor(name)
                if value.dtype.kind not in "fiub":
                    raise ValueError(f"{name} is of type {value.dtype}")
                if value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise ValueError(f"{name} has values that are NaN or infinite")
                shapes[name] = value.shape
                yield name, value

        return sorted_digest(pairs())


def _require_moments(upload: Upload, head: tuple[int, ...] | None) -> None:
    with open_tensors(moments_file(upload.weights)) as stored:
        arrays = {name: stored.get_tensor(name) for name in stored.keys()}
    if arrays_digest(arrays) != upload.moments:
        raise ValueError("it is not what was written, its SHA-256 differs")
    shape = head or (arrays["sums"].shape if "sums" in arrays else ())
    if len(shape) != 2:
        raise ValueError("it does not hold class moments")
    check_moments(check_arrays(arrays, moments_reference(*shape))[0], upload.num_examples)
