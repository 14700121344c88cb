"""Which columns of a table hold images and labels, and what Hugging Face says of them."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from fedmitr_app.errors import ConfigError
from fedmitr_app.partitions.names import some_names
from fedmitr_app.partitions.rows import require_column

USUAL_NAMES = ("img", "image")


def find_image_column(columns: Sequence[str], typed: Sequence[str], wanted: str, where: str) -> str:
    """Return the image column: ``wanted``, else the first of those typed so, else a usual name.

    Raises
    ------
    ConfigError
        If ``wanted`` isn't there, or nothing looks like an image.
    """
    if wanted:
        return require_column("data.image-column", wanted, columns, where)
    found = [*typed, *(name for name in USUAL_NAMES if name in columns)]
    if not found:
        raise ConfigError.bad_value(
            "data.image-column",
            wanted,
            f"set, because no column of {where} looks like an image: its columns are "
            f"{some_names(columns, 50)}",
            public="set, because no column of its data looks like an image",
        )
    return found[0]


def declared_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return what the datasets library has written of each column into a file's schema.

    Not read with that library, which has to understand the type of every column for it.

    Raises
    ------
    ValueError
        If something stands there that is not JSON.
    """
    written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    try:
        features = written["info"]["features"].items()
    except (KeyError, TypeError, AttributeError):  # nothing that the library would have written
        return {}
    return {name: kind for name, kind in features if isinstance(kind, dict)}


def is_image(field: pa.Field, declared: dict[str, dict[str, Any]]) -> bool:
    """Tell whether a column is declared to be an image, or is laid out as one."""
    if declared.get(field.name, {}).get("_type") == "Image":
        return True
    parts = {part.name for part in field.type} if pa.types.is_struct(field.type) else set()
    return parts == {"bytes", "path"}


def class_names_of(declared: dict[str, Any] | None) -> tuple[str, ...] | None:
    """Return the names that a label column's numbers stand for, if it says so."""
    names = (declared or {}).get("names")
    return tuple(map(str, names)) if isinstance(names, list) and names else None
