"""Between Flower's records and what the uploads room understands."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError
from torch import Tensor

from fedmitr_app.errors import UploadError
from fedmitr_app.uploads import (
    ArrayHeader,
    ArraySpec,
    ClassMoments,
    Expected,
    Metadata,
    check_arrays,
    check_headers,
    check_metadata,
    check_moments,
    decode_npy,
    moments_reference,
)
from fedmitr_app.uploads.class_means import HEAD

UPLOAD_KEY = "upload"
HAVE_KEY = "have-uploads"
GIVEN_KEY = "given-settings"
"""Names of the settings that the user gave: Flower hands clients all of them, given or not."""
SIMULATED_KEY = "simulated"
"""Whether Flower simulates the nodes: their lines then stand among the server's."""
SCORE_KEY = "score"
"""Whether a node that is sent the global model is to evaluate it, too."""
RECEIVED = "received"
"""The status of a reply by which a node takes the model without evaluating it."""
MOMENTS_KEY = "class-moments"
METRICS_KEY = "metrics"
NUMPY_STYPE = "numpy.ndarray"
MAX_JSON_LENGTH = 20_000

Record = TypeVar("Record", ArrayRecord, MetricRecord, ConfigRecord)


@dataclass(frozen=True)
class RecordKeys:
    """Names of the records in messages, as in Flower's FedAvg."""

    arrays: str = "arrays"
    config: str = "config"
    weighted_by: str = "num-examples"


@dataclass(frozen=True)
class CheckedReply:
    """A reply whose upload may be kept."""

    arrays: dict[str, np.ndarray]
    metadata: Metadata
    notes: list[str]
    left_out: list[str]
    """What was wrong with what it shares beside its weights."""
    moments: ClassMoments | None = None


def records_of(content: RecordDict, kind: type[Record]) -> dict[str, Record]:
    """Return the records of one kind.

    RecordDict's own views (``content.array_records``) hold themselves and the whole
    content in a reference cycle: uploads would pile up until the collector runs.
    """
    return {name: value for name, value in content.items() if isinstance(value, kind)}


def status_of(content: RecordDict) -> tuple[str, str, str]:
    """Return a reply's status ("ok" if it gives none), client key and reason, if any."""
    upload: Mapping[str, Any] = records_of(content, ConfigRecord).get(UPLOAD_KEY, {})
    words = (upload.get(key, "") for key in ("status", "client-key", "reason"))
    status, client, reason = (word[:1000] if isinstance(word, str) else "" for word in words)
    return status or "ok", client, reason


def key_digest(client: str) -> str:
    """Return what stands for a client key where other clients can read it."""
    return hashlib.sha256(client.encode()).hexdigest()[:16]


def server_config(content: RecordDict, keys: RecordKeys) -> Mapping[str, Any]:
    """Return the config record that the server sends with a task; empty if it sends none."""
    return records_of(content, ConfigRecord).get(keys.config, {})


def check_reply(
    content: RecordDict, keys: RecordKeys, reference: Mapping[str, ArraySpec], expected: Expected
) -> CheckedReply:
    """Decode one reply and check it by itself.

    Raises
    ------
    UploadError
        With the first thing that is wrong, in one sentence. Arrays are decoded last,
        and only if everything declared about them is right. What a client shares beside its
        weights is left out, with a note, if it is wrong.
    """
    metadata, left_out = check_metadata(_metadata(content, keys), expected)
    records = records_of(content, ArrayRecord)
    shared = records.pop(MOMENTS_KEY, None)
    clean, notes = _decode(_only(records, keys.arrays, "arrays"), reference)
    moments = None
    try:
        moments = _moments(shared, reference, metadata.num_examples)
    except UploadError as error:
        left_out.append(str(error))
    left_out = [f"left out what it shares beside its weights: {reason}" for reason in left_out]
    return CheckedReply(clean, metadata, notes, left_out, moments)


def _moments(
    shared: ArrayRecord | None, reference: Mapping[str, ArraySpec], num_examples: int | None
) -> ClassMoments | None:
    if shared is None:
        return None
    if HEAD[0] not in reference:
        raise UploadError("it holds class moments, and the server's model has no 'head.weight'.")
    classes, features = reference[HEAD[0]].shape
    values, _ = _decode(shared, moments_reference(classes, features))
    return check_moments(values, num_examples)


def _decode(
    arrays: ArrayRecord, reference: Mapping[str, ArraySpec]
) -> tuple[dict[str, np.ndarray], list[str]]:
    check_headers({name: _header(name, array) for name, array in arrays.items()}, reference)
    decoded = {name: decode_npy(array.data, name=name) for name, array in arrays.items()}
    for name, array in arrays.items():
        if decoded[name].dtype != np.dtype(array.dtype):
            raise UploadError(
                f"{name} declares values of type {array.dtype} "
                f"but holds values of type {decoded[name].dtype}."
            )
    return check_arrays(decoded, reference)


def metrics_of(content: RecordDict, keys: RecordKeys) -> dict[str, Any]:
    """Return a reply's metrics, the number of examples among them."""
    metrics = records_of(content, MetricRecord)
    return dict(_only(metrics, METRICS_KEY, "metrics", needed=keys.weighted_by))


def reference_of_record(arrays: ArrayRecord) -> dict[str, ArraySpec]:
    """Return the shapes and types of an ArrayRecord, without decoding it."""
    return {
        name: ArraySpec(tuple(array.shape), np.dtype(array.dtype)) for name, array in arrays.items()
    }


def pack_state(
    fused: Mapping[str, Tensor], reference: Mapping[str, ArraySpec], name: str
) -> ArrayRecord:
    """Return what a strategy called ``name`` fused, in the order of the initial arrays.

    Raises
    ------
    AggregationError
        If it has other names or shapes than those.
    """
    shapes = {key: tuple(value.shape) for key, value in fused.items()}
    if shapes != {key: spec.shape for key, spec in reference.items()}:
        raise AggregationError(
            f"{name}.fuse returned other names or shapes than the initial arrays have: it must "
            "return a state dict that the same model can load."
        )
    return to_array_record({key: fused[key] for key in reference})


def to_array_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Return a state dict as an ArrayRecord, its half-width floats as float32."""
    return ArrayRecord({name: Array(_to_numpy(value)) for name, value in state.items()})


def moments_record(moments: ClassMoments) -> ArrayRecord:
    """Return class moments as they travel, under ``MOMENTS_KEY``."""
    return ArrayRecord({name: Array(value) for name, value in moments.arrays().items()})


def _to_numpy(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    # bfloat16 has no numpy form, and float16 loses nothing in float32.
    if value.dtype in (torch.bfloat16, torch.float16):
        value = value.float()
    return value.contiguous().numpy()


def _metadata(content: RecordDict, keys: RecordKeys) -> Metadata:
    metrics = metrics_of(content, keys)
    upload: Mapping[str, Any] = records_of(content, ConfigRecord).get(UPLOAD_KEY, {})
    return Metadata(
        num_examples=metrics.pop(keys.weighted_by, None),
        client=upload.get("client-key"),
        architecture=_from_json(upload, "architecture"),
        input_spec=_from_json(upload, "input-spec"),
        label_counts=_from_json(upload, "label-counts"),
        metrics=metrics,
    )


def _from_json(record: Mapping[str, Any], key: str) -> Any:
    text = record.get(key)
    if text is None:
        return None
    try:
        if not isinstance(text, str) or len(text) > MAX_JSON_LENGTH:
            raise ValueError
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UploadError(f"its {key} is not readable JSON.") from None


def _only(records: Mapping[str, Record], key: str, what: str, needed: str | None = None) -> Record:
    """Return the record under ``key``, or else the only one there is."""
    if key in records:
        return records[key]
    if len(records) == 1:
        return next(iter(records.values()))
    tail = f" with {needed!r}" if needed else ""
    raise UploadError(
        f"it has {len(records)} records of {what} where one{tail} is needed, under {key!r}."
    )


def _header(name: str, array: Array) -> ArrayHeader:
    if array.stype != NUMPY_STYPE:
        raise UploadError(f"{name} is serialised as {array.stype[:40]!r}, not {NUMPY_STYPE!r}.")
    return ArrayHeader(tuple(array.shape), array.dtype, len(array.data))
