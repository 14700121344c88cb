"""What an experiment file says: rows (methods and settings) over axes (partitions and seeds)."""

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmitr_app.config import Config, flatten, parse_config
from fedmitr_app.errors import ConfigError
from fedmitr_app.methods import METHODS

AXES: dict[str, tuple[type, list[Any]]] = {
    "kind": (str, ["dirichlet"]),
    "alpha": (float, [0.1]),
    "clients": (int, [5]),
    "seeds": (int, [0, 1, 2]),
}
TOP = ("title", "axes", "settings", "rows", "figure")


@dataclass(frozen=True)
class Federation:
    """One way of dealing the data to clients, with one seed: the uploads that it gives."""

    kind: str
    alpha: float
    clients: int
    seed: int

    @property
    def group(self) -> str:
        """The same for every seed."""
        skew = "" if self.kind in ("iid", "natural", "pathological") else f", α = {self.alpha:g}"
        return f"{self.clients} clients, {self.kind}{skew}"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    method: str
    settings: Mapping[str, Any]
    """Run-config keys that differ from the experiment's own."""


@dataclass(frozen=True)
class Cell:
    """One row on one federation's uploads."""

    row: Row
    federation: Federation
    config: Config


@dataclass(frozen=True)
class Grid:
    """A whole experiment."""

    title: str
    cells: tuple[Cell, ...]
    curve: tuple[str, str] | None = None
    """Two run-config keys: a figure of accuracy over the first, a line for each of the second."""


def read_grid(path: Path, overrides: Mapping[str, Any] | None = None) -> Grid:
    """Read an experiment file.

    Its tables: ``axes`` (lists under ``kind``, ``alpha``, ``clients``, ``seeds``),
    ``settings`` (run-config keys for all rows), ``rows.<name>`` with ``method`` (the row's
    name unless given) and ``settings`` of its own, and perhaps ``figure`` with two keys, ``x``
    and ``line``, for a curve. What is given wins over a preset.

    Parameters
    ----------
    overrides : Mapping[str, Any], optional
        Run-config keys that stand for all rows' ``settings``, and win over the file's.

    Raises
    ------
    ConfigError
        In one sentence, for a file that can't be read, an unknown name or an impossible value.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is no experiment file that can be read: {error}.") from error
    _only(table, TOP, str(path))
    axes = {name: _axis(name, table.get("axes", {}), path) for name in AXES}
    _only(table.get("axes", {}), AXES, f"{path}, axes")
    rows = [_row(name, given, path) for name, given in table.get("rows", {}).items()]
    if not rows:
        raise ConfigError(f"{path} has no rows: it must have a table such as [rows.fedmitr].")
    common = {**_flat(table.get("settings", {})), **(overrides or {})}
    cells = []
    # Seeds last: the first whole column of a table is there early.
    for seed, kind, alpha, clients in itertools.product(
        axes["seeds"], axes["kind"], axes["alpha"], axes["clients"]
    ):
        federation = Federation(kind, float(alpha), clients, seed)
        dealt = {"seed": seed, "partition.kind": kind, "partition.alpha": float(alpha)}
        for row in rows:
            config = parse_config({**common, **dealt, **row.settings}, given_wins=True)
            cells.append(Cell(row, federation, config))
    curve = _curve(table.get("figure"), cells[0].config, path)
    return Grid(str(table.get("title", path.stem)), tuple(cells), curve)


def _row(name: str, given: Any, path: Path) -> Row:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{path}: rows.{name} must be a table, such as [rows.{name}].")
    _only(given, ("method", "settings"), f"{path}, rows.{name}")
    method = given.get("method", name)
    if method not in METHODS:
        known = ", ".join(map(repr, METHODS))
        raise ConfigError(f"{path}: {method!r} is not a method; the methods are {known}.")
    return Row(name, method, _flat(given.get("settings", {})))


def _axis(name: str, axes: Mapping[str, Any], path: Path) -> list[Any]:
    kind, default = AXES[name]
    values = axes.get(name, default)
    allowed = (int, float) if kind is float else (kind,)
    good = isinstance(values, list) and values and len(set(map(str, values))) == len(values)
    if not good or any(isinstance(v, bool) or not isinstance(v, allowed) for v in values):
        words = {str: "names", float: "numbers", int: "whole numbers"}[kind]
        raise ConfigError(f"{path}: axes.{name} = {values!r} must be a list of different {words}.")
    if name == "clients" and min(values) < 1:
        raise ConfigError(f"{path}: axes.clients = {values!r} must be numbers of at least 1.")
    return values


def _curve(figure: Any, config: Config, path: Path) -> tuple[str, str] | None:
    if figure is None:
        return None
    _only(figure, ("x", "line"), f"{path}, figure")
    known = flatten(config)
    for name in ("x", "line"):
        if figure.get(name) not in known:
            raise ConfigError(
                f"{path}: figure.{name} = {figure.get(name)!r} must be a setting, such as "
                "'inversion.iterations'."
            )
    return figure["x"], figure["line"]


def _only(table: Mapping[str, Any], known: Any, where: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: {key!r} is unknown; known are {', '.join(known)}.")


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings may stand as ``"a.b" = 1`` or as tables; the result has dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
