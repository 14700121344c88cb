"""Field constructors: each setting carries its own check and the words for what is allowed.

A setting is a dataclass field whose metadata holds ``parse``: a function that takes
the raw run-config value and returns the typed one, or raises ``ValueError`` with
the words that finish the sentence "it must be ..."; ``doc``, what it does, in words that
``pyproject.toml`` and ``docs/reference/settings.md`` repeat; and ``basic``, whether it is one of
the dozen that a first reader should see.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

RESULT_NEUTRAL, DOC, BASIC = "result-neutral", "doc", "basic"


def _field(default: Any, parse: Callable[[Any], Any], doc: str, basic: bool) -> Any:
    metadata = {"parse": parse, DOC: doc, BASIC: basic}
    return dataclasses.field(default=default, metadata=metadata)


def result_neutral(setting: Any) -> Any:
    """Mark a setting that only says where and how patiently work is done: nothing else changes."""
    metadata = {**setting.metadata, RESULT_NEUTRAL: True}
    return dataclasses.field(default=setting.default, metadata=metadata)


def _range_words(kind: str, low: float | None, high: float | None, open_low: bool) -> str:
    if low is None and high is None:
        return kind
    if high is None:
        return f"{kind} {'above' if open_low else 'of at least'} {low:g}"
    left = f"above {low:g} and" if open_low else f"from {low:g}"
    return f"{kind} {left} {'at most' if open_low else 'to'} {high:g}"


def _is_finite(raw: int | float) -> bool:
    try:
        return math.isfinite(raw)
    except OverflowError:  # a whole number that no float can hold
        return False


def number(
    default: float,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    doc: str = "",
    basic: bool = False,
) -> Any:
    """Take a finite float within [low, high], or (low, high] with ``open_low``."""
    words = _range_words("a number", low, high, open_low)

    def parse(raw: Any) -> float:
        if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not _is_finite(raw):
            raise ValueError(words)
        too_low = low is not None and (raw <= low if open_low else raw < low)
        if too_low or (high is not None and raw > high):
            raise ValueError(words)
        return float(raw)

    return _field(default, parse, doc, basic)


def whole(
    default: int, *, low: int, high: int | None = None, doc: str = "", basic: bool = False
) -> Any:
    """Take an integer within [low, high]."""
    words = _range_words("a whole number", low, high, False)

    def parse(raw: Any) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise ValueError(words)
        if raw < low or (high is not None and raw > high):
            raise ValueError(words)
        return raw

    return _field(default, parse, doc, basic)


def choice(default: str, *options: str, doc: str = "", basic: bool = False) -> Any:
    """Take one of the given words."""
    words = "one of " + ", ".join(repr(option) for option in options)

    def parse(raw: Any) -> str:
        if not isinstance(raw, str) or raw not in options:
            raise ValueError(words)
        return raw

    return _field(default, parse, doc, basic)


def flag(default: bool, *, doc: str = "", basic: bool = False) -> Any:
    """Take true or false."""

    def parse(raw: Any) -> bool:
        if not isinstance(raw, bool):
            raise ValueError("true or false")
        return raw

    return _field(default, parse, doc, basic)


def text(default: str, *, doc: str = "", basic: bool = False) -> Any:
    """Take any string."""

    def parse(raw: Any) -> str:
        if not isinstance(raw, str):
            raise ValueError("a string")
        return raw

    return _field(default, parse, doc, basic)


def numbers(
    default: tuple[float, ...],
    *,
    low: float,
    high: float | None = None,
    doc: str = "",
    basic: bool = False,
) -> Any:
    """Take several numbers in one string, separated by commas (run configs hold no lists)."""
    words = _range_words("numbers separated by commas, each", low, high, False)

    def parse(raw: Any) -> tuple[float, ...]:
        parts = raw.split(",") if isinstance(raw, str) else [raw]
        if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
            raise ValueError(words)
        try:
            values = tuple(float(part) for part in parts if str(part).strip())
        except (ValueError, OverflowError):
            raise ValueError(words) from None
        for value in values:
            if not math.isfinite(value) or value < low or (high is not None and value > high):
                raise ValueError(words)
        return values

    return _field(default, parse, doc, basic)
