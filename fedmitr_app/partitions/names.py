"""Names of classes: one spelling of each, and lists of them in a setting."""

import csv
import io
import unicodedata
from collections.abc import Sequence

from fedmitr_app.errors import ConfigError, DataError

MOST_LETTERS = 200
"""Of a class's name (choice): file systems allow 255 bytes, and figures show some twenty."""


def clean_name(name: str) -> str:
    """Return a name as it is compared and shown: composed (NFC), blanks single and only inside.

    macOS decomposes accents (NFD) where others don't, and a trailing blank can't be seen: what
    looks the same on two nodes must be the same class.
    """
    return " ".join(unicodedata.normalize("NFC", name).split())


def require_name(name: str, where: str) -> str:
    """Return a class's or domain's name, clean.

    Raises
    ------
    DataError
        If nothing is left of it, it has control characters, or more than ``MOST_LETTERS``.
    """
    clean = clean_name(name)
    if not clean or len(clean) > MOST_LETTERS or any(map(_is_control, clean)):
        shown = clean[:40] + ("..." if len(clean) > 40 else "")
        raise DataError(
            f"{where} holds the name {shown!r} of {len(clean)} letters: a class needs a name of 1 "
            f"to {MOST_LETTERS} letters without control characters."
        )
    return clean


def split_names(setting: str, text: str) -> tuple[str, ...]:
    """Return the names that a setting lists, separated by commas; empty ones are left out.

    As in a CSV file, a name that holds a comma stands in double quotes: ``"a, b",c``.

    Raises
    ------
    ConfigError
        If a quote that a name starts with is left open, or text stands after its closing one.
    """
    try:
        names = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise ConfigError.bad_value(
            setting, text, 'names separated by commas, in "double quotes" where they hold one'
        ) from error
    return tuple(filter(None, map(clean_name, names)))


def join_names(names: Sequence[str]) -> str:
    """Return names as :func:`split_names` reads them."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


def some_names(names: Sequence[str], most: int = 10) -> str:
    """Return the first names in quotes, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def count_of(number: int, noun: str) -> str:
    """Return a number of images, classes or domains: "1 class", "2 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) == "Cc"
