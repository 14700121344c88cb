"""Check what an upload says about itself: who sent it, how many samples, which model."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedmitr_app.errors import UploadError
from fedmitr_app.models.spec import InputSpec

MAX_EXAMPLES = 10**12
MAX_KEY_LENGTH = 200
MAX_METRICS = 64
MAX_METRIC = 1e30  # sums of what is far below the largest float stay finite
MAX_SIDE = 10**5
"""Pixels, or channels, that an input spec may have."""
_SHOWN = 60


@dataclass(frozen=True)
class Metadata:
    """What comes with the arrays; every part but ``num_examples`` may be absent."""

    num_examples: Any = None
    client: Any = None
    architecture: Any = None
    input_spec: Any = None
    label_counts: Any = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """What the server knows about its own model; None where it doesn't check."""

    architecture: Mapping[str, Any] | None = None
    input_spec: InputSpec | None = None
    num_classes: int | None = None


def check_metadata(claims: Metadata, expected: Expected = Expected()) -> tuple[Metadata, list[str]]:
    """Return the claims in plain, checked types, and a note for what was left out.

    A part that is absent passes: an ordinary Flower client sends none but the number
    of examples. What the model is as good without is left out, not refused: a number of
    examples that can't be right (then it is None, and everybody counts alike), label counts
    that can't be, metrics that aren't finite numbers.

    Raises
    ------
    UploadError
        With the first claim that is wrong, in one sentence.
    """
    notes: list[str] = []
    try:
        examples = check_num_examples(claims.num_examples)
    except UploadError as error:
        examples = None
        notes.append(str(error))
    try:
        counts = _check_label_counts(claims.label_counts, examples, expected)
    except UploadError as error:
        counts = None
        notes.append(str(error))
    checked = dataclasses.replace(
        claims,
        num_examples=examples,
        client=None if claims.client is None else check_client_key(claims.client),
        architecture=_check_architecture(claims.architecture, expected),
        input_spec=_check_input_spec(claims.input_spec, expected),
        label_counts=counts,
        metrics=finite_metrics(claims.metrics),
    )
    return checked, notes


def check_num_examples(value: Any) -> int:
    """Return the number of examples as a positive integer, or raise ``UploadError``."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    # The range also excludes NaN and infinity, which int() would choke on.
    if not plain or not 0 < value < MAX_EXAMPLES or value != int(value):
        raise UploadError(
            f"num-examples = {_short(value)}: it must be a whole number from 1 to below 1e12."
        )
    return int(value)


def check_client_key(value: Any) -> str:
    """Return the client key, or raise ``UploadError`` if it can't name anyone."""
    # Commas separate keys in settings; "#" tells those apart that claim one key.
    good = (
        isinstance(value, str)
        and 0 < len(value) <= MAX_KEY_LENGTH
        and value.strip() == value
        and value.isprintable()
        and not set(",#") & set(value)
    )
    if not good:
        raise UploadError(
            f"client-key = {_short(value)}: it must be 1 to {MAX_KEY_LENGTH} "
            "printable characters without ',' or '#', nor spaces around them."
        )
    return str(value)


def finite_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are single finite numbers with printable names, by name."""
    kept = {
        name: float(value)
        for name, value in sorted(metrics.items())
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= MAX_METRIC
        and len(name) <= MAX_KEY_LENGTH
        and name.isprintable()
    }
    return dict(list(kept.items())[:MAX_METRICS])


def _check_architecture(declared: Any, expected: Expected) -> dict[str, Any] | None:
    if declared is None:
        return None
    if not isinstance(declared, Mapping):
        raise UploadError("its architecture is not a table of names and values.")
    known = dict(expected.architecture or {})
    if expected.num_classes is not None:
        known.setdefault("num_classes", expected.num_classes)
    _same(known, declared, "architecture")
    # Of what nobody asked about, only plain values stay: a table in a table may have no end.
    plain = {key: declared[key] for key in declared if isinstance(declared[key], (str, int, float))}
    return dict(list(plain.items())[:MAX_METRICS]) | {key: declared[key] for key in known}


def _check_input_spec(declared: Any, expected: Expected) -> InputSpec | None:
    if declared is None:
        return None
    if isinstance(declared, InputSpec):
        declared = declared.to_dict()
    try:
        spec = InputSpec.from_dict(declared)
        sizes = 0 < spec.size <= MAX_SIDE and 0 < spec.channels <= MAX_SIDE
        if not (sizes and spec.is_sound):
            raise ValueError
    except Exception as error:  # whatever a stranger's table makes it raise
        raise UploadError("its input spec is not size, channels, mean and std.") from error
    if expected.input_spec is not None:
        known, told = expected.input_spec.to_dict(), spec.to_dict()
        for key in ("mean", "std"):
            known[key], told[key] = list(known[key]), list(told[key])
            # One mean for all channels says the same as that mean for each of them. Only told
            # apart, not expanded: a stranger says how many channels there are.
            if len(known[key]) != len(told[key]) and set(known[key]) == set(told[key]):
                told[key] = known[key]
        _same(known, told, "input spec")
    return spec


def _same(known: Mapping[str, Any], declared: Mapping[str, Any], what: str) -> None:
    for key, value in known.items():
        try:
            same = _plain(declared.get(key)) == _plain(value)
        except (RecursionError, ValueError):  # a table in a table without end, a number likewise
            same = False
        if not same:
            raise UploadError(
                f"its {what} differs from the server's: "
                f"{key} is {_short(declared.get(key))}, not {_short(value)}."
            )


def _check_label_counts(
    declared: Any, num_examples: int | None, expected: Expected
) -> tuple[int, ...] | None:
    if declared is None:
        return None
    good = isinstance(declared, (list, tuple)) and all(
        isinstance(count, int) and not isinstance(count, bool) and 0 <= count < MAX_EXAMPLES
        for count in declared
    )
    if not good:
        raise UploadError("its label counts are not whole numbers from 0 to below 1e12.")
    if expected.num_classes is not None and len(declared) != expected.num_classes:
        raise UploadError(
            f"it counts the labels of {len(declared)} classes "
            f"where the server has {expected.num_classes}."
        )
    if sum(declared) != num_examples:
        raise UploadError(
            f"its label counts sum to {_short(sum(declared))} but num-examples = {num_examples}."
        )
    return tuple(declared)


def _plain(value: Any) -> Any:
    # Tuples become lists, as on the wire, so that (0.5,) equals [0.5].
    return json.loads(json.dumps(value, default=str))


def _short(value: Any) -> str:
    """Show the beginning of a stranger's value, without writing out the rest first."""
    if isinstance(value, (str, bytes, list, tuple)):
        value = value[: _SHOWN + 1]
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # ValueError: a number too long to be written
        text = f"a {type(value).__name__} beyond all measure"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
