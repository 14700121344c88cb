"""What each setting does, as the schema has it: for ``pyproject.toml`` and a page."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from fedmitr_app.config.fields import BASIC, DOC
from fedmitr_app.config.parse import RawValue, flatten
from fedmitr_app.config.schema import Config

_QUOTED = re.compile(r"(?<![\w'])('[^']*')(?!\w)")
"""A word in quotes, which a page shows as code; not an apostrophe."""


class Described(NamedTuple):
    """A setting, for a reader."""

    key: str
    """As in a run config."""
    default: RawValue
    doc: str
    basic: bool


def described() -> list[Described]:
    """Return every setting, in the schema's order."""
    defaults = flatten(Config())
    return [
        Described(key, defaults[key], spec.metadata[DOC], spec.metadata[BASIC])
        for key, spec in _fields(Config(), "")
    ]


def _fields(config: Any, prefix: str) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for spec in dataclasses.fields(config):
        value, key = getattr(config, spec.name), prefix + spec.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{key}.")
        else:
            yield key, spec


def app_config() -> str:
    """Return the settings as ``pyproject.toml`` holds them, below ``[tool.flwr.app.config]``."""
    lines, section = ["[tool.flwr.app.config]"], ""
    for setting in described():
        table, _, name = setting.key.rpartition(".")
        if table != section:
            lines += ["", f"[tool.flwr.app.config.{table}]"]
            section = table
        lines.append(f"{name} = {_toml(setting.default)}  # {setting.doc}")
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page of settings: the basic ones, then all of each section."""
    settings = described()
    titles = {
        spec.name: type(getattr(Config(), spec.name)).__doc__ for spec in dataclasses.fields(Config)
    }
    lines = [
        "# Settings",
        "",
        'Given as `flwr run . --run-config "key=value ..."`, or in code as',
        '`changes={"key": value}`. A value that is given wins over the preset, the preset over the',
        "default. Made from `fedmitr_app/config/schema.py` by `docs/make_settings.py`.",
        "",
        "## To begin with",
        "",
        *_table([setting for setting in settings if setting.basic]),
    ]
    sections = dict.fromkeys(setting.key.rpartition(".")[0] for setting in settings)
    for section in sections:
        title = (titles.get(section) or "The whole run.").splitlines()[0].rstrip(".")
        own = [each for each in settings if each.key.rpartition(".")[0] == section]
        lines += ["", f"## {section + ': ' if section else ''}{title}", "", *_table(own)]
    return "\n".join(lines) + "\n"


def _table(settings: list[Described]) -> list[str]:
    rows = ["| setting | default | |", "|---|---|---|"]
    for setting in settings:
        doc = setting.doc.replace("|", "\\|").replace("<", "&lt;")
        doc = _QUOTED.sub(r"`\1`", doc)
        rows.append(f"| `{setting.key}` | `{_toml(setting.default)}` | {doc} |")
    return rows


def _toml(value: RawValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else repr(value)
