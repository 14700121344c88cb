"""A run's settings as ``flwr run`` takes them, before Flower itself sees them."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from flwr.common.config import flatten_dict, parse_config_args

from fedmitr_app.config import default_run_config
from fedmitr_app.errors import ConfigError
from fedmitr_app.utils.files import reason_of
from fedmitr_app.utils.text import harmless


def read_run_config(words: Sequence[str], project: Path) -> tuple[dict[str, Any], list[str]]:
    """Read what ``flwr run <project> --run-config ...`` would hand to the app.

    Parameters
    ----------
    words : Sequence[str]
        ``"key=value ..."``, or one path of a TOML file, by Flower's own rules.
    project : Path
        Whose ``pyproject.toml`` holds the app's defaults, if it is this app's.

    Returns
    -------
    tuple[dict[str, Any], list[str]]
        Every setting, and the keys that were given.

    Raises
    ------
    ConfigError
        In one sentence, for words or files that Flower can't read.
    """
    try:
        given = parse_config_args(list(words))
    except (click.ClickException, OSError, ValueError) as error:
        told = error.message if isinstance(error, click.ClickException) else reason_of(error)
        which = f"--run-config {' '.join(words)!r}"
        raise ConfigError(harmless(f"{which} can't be read: {told}")) from error
    return {**default_run_config(), **_defaults_of(project), **given}, sorted(given)


def _defaults_of(project: Path) -> dict[str, Any]:
    path = project / "pyproject.toml"
    try:
        app = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
        if not app["components"]["serverapp"].startswith("fedmitr_app."):
            return {}
        return flatten_dict(app["config"])
    except FileNotFoundError:
        return {}
    except (KeyError, AttributeError, TypeError):  # another project
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(harmless(f"{path} can't be read: {reason_of(error)}.")) from error
