"""A run's settings as ``flwr run`` takes them, before Flower itself sees them."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flwr.common.config import flatten_dict

from fedmitr_app.config import default_run_config
from fedmitr_app.errors import ConfigError
from fedmitr_app.utils.files import reason_of
from fedmitr_app.utils.reading import read_text
from fedmitr_app.utils.text import harmless

_PAIR = re.compile(r"(\S+?)=(\'[^\']*\'|\"[^\"]*\"|\S+)")
"""As Flower finds settings in what is given on the command line (1.42); what else there is it
leaves out without a word."""


class RunConfig(NamedTuple):
    """What Flower would hand to the app."""

    values: dict[str, Any]
    """Every setting."""
    given: list[str]
    """Keys of those given, sorted."""
    defaults: str
    """Where the others are from."""


def read_run_config(words: Sequence[str], project: Path) -> RunConfig:
    """Read what ``flwr run <project> --run-config ...`` would hand to the app.

    What Flower would leave out in silence is an error here.

    Parameters
    ----------
    words : Sequence[str]
        ``"key=value ..."``, or one path of a TOML file.
    project : Path
        Whose ``pyproject.toml`` holds the app's defaults, if it is this app's.

    Raises
    ------
    ConfigError
        In one sentence, for words or files that can't be read.
    """
    if not project.is_dir():
        raise ConfigError.bad_value(
            "project", str(project), "the app's folder (settings go after --run-config)"
        )
    files = [word for word in words if word.endswith(".toml")]
    if files and len(words) > 1:
        raise ConfigError("--run-config takes one TOML file, or settings, and not both.")
    given: dict[str, Any] = {}
    if files:
        given = {**flatten_dict(_toml_file(Path(files[0]), "--run-config"))}
    for key, value in _pairs([] if files else words):
        if key in given:
            raise ConfigError(harmless(f"--run-config gives {key} twice: give it once."))
        given[key] = value
    own, where = _defaults_of(project)
    return RunConfig({**default_run_config(), **own, **given}, sorted(given), where)


def _pairs(words: Sequence[str]) -> list[tuple[str, Any]]:
    """Read ``key=value key=value``, pair by pair, as TOML."""
    left = harmless(" ".join(" ".join(_PAIR.sub(" ", each) for each in words).split()), 100)
    if left:
        raise ConfigError(
            f"--run-config holds {left!r}, which is no key=value: write it without blanks around "
            "the equals sign, and values with blanks in quotes."
        )
    found: list[tuple[str, Any]] = []
    for key, value in (pair for each in words for pair in _PAIR.findall(each)):
        try:
            read = tomllib.loads(f"value = {value}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            shown = harmless(f"{key}={value}", 100)
            raise ConfigError(
                f"--run-config {shown} can't be read: write words in quotes, as in "
                f"{harmless(key, 60)}='word', and numbers, true and false without."
            ) from None
        if not isinstance(read, (bool, int, float, str)):
            raise ConfigError.bad_value(harmless(key, 60), value, "a number, a word, true or false")
        found.append((key, read))
    return found


def _toml_file(path: Path, setting: str) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path.expanduser().resolve()))
    except RecursionError:
        why = "it is nested too deeply"
    except (OSError, RuntimeError, ValueError) as error:
        why = reason_of(error).rstrip(".")
    raise ConfigError(harmless(f"{setting} {str(path)!r} can't be read: {why}."))


def _defaults_of(project: Path) -> tuple[Mapping[str, Any], str]:
    """Return an app's own defaults, and where they are from."""
    path = project / "pyproject.toml"
    installed = "the installed package's"
    if not path.exists():
        return {}, f"{installed} ({harmless(path)} is not there)"
    table = _toml_file(path, "the app's")
    found: Mapping[str, Any] = {}
    try:
        app = table["tool"]["flwr"]["app"]
        ours = bool(app["components"]["serverapp"].startswith("fedmitr_app."))
        if ours:
            found = {**flatten_dict(app["config"])}
    except (KeyError, AttributeError, TypeError, ValueError):
        ours = False
    where = harmless(path.resolve())
    return found, where if ours else f"{installed} ({where} is another app's)"
