"""What an experiment file says: rows (methods and settings) over axes (partitions and seeds)."""

import itertools
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedmitr_app.config import Config, flatten, parse_config
from fedmitr_app.errors import ConfigError
from fedmitr_app.experiments.attacks import ABSENT, ATTACKS
from fedmitr_app.methods import METHODS, known_methods

AXES: dict[str, type] = {
    "kind": str,
    "alpha": float,
    "clients": int,
    "seeds": int,
    "attack": str,
    "attackers": int,
}
# What the axes say must not be said again elsewhere.
KEYS_OF_AXES = {"partition.kind": "kind", "partition.alpha": "alpha", "seed": "seeds"}
WITHOUT_ALPHA = ("iid", "natural", "pathological")
TOP = ("title", "axes", "settings", "rows", "table", "figure")
# Said to a whole run's server, which an experiment has not: what its rows do, their methods say.
WITHOUT_MEANING = ("server.", "output.")
NO_ATTACK = "none"


@dataclass(frozen=True)
class Federation:
    """One way of dealing the data to clients, with one seed: the uploads that it gives."""

    kind: str
    alpha: float | None
    """None for kinds that know no α."""
    clients: int
    seed: int

    @property
    def group(self) -> str:
        """The same for every seed."""
        skew = "" if self.alpha is None else f", α = {self.alpha:g}"
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
    attack: str = NO_ATTACK
    """What some clients send in place of their models, see ``attacks``."""
    attackers: int = 0
    """How many."""


class Curve(NamedTuple):
    """A figure of accuracy over a setting."""

    x: str
    """A run-config key."""
    lines: tuple[str, ...]
    """Run-config keys: a line for each of the values that they have together."""


@dataclass(frozen=True)
class Grid:
    """A whole experiment."""

    title: str
    cells: tuple[Cell, ...]
    curve: Curve | None = None
    against: tuple[str, ...] = ()
    """Names of the rows that the others' differences are taken to."""


def read_grid(path: Path, overrides: Mapping[str, Any] | None = None) -> Grid:
    """Read an experiment file.

    Its tables: ``axes`` (lists under ``kind``, ``alpha``, ``clients``, ``seeds``, ``attack``,
    ``attackers``; without one the settings' own kind and α, 5 clients, seeds 0 to 2, no attack,
    else one attacker), ``settings`` (run-config keys for all rows), ``rows.<name>`` with
    ``method`` (the row's name unless given) and ``settings`` of its own, and perhaps
    ``table`` with ``against``, names of rows that the others are compared with (the first row of
    FedMITR unless given), and
    ``figure`` with two keys for a curve: ``x``, a setting, and ``line``, one or a list.
    What is given wins over a preset.

    Parameters
    ----------
    overrides : Mapping[str, Any], optional
        Run-config keys for all rows, which win over the file's ``settings``; a key that a row
        sets itself is refused.

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
    given = {name: _table(table, name, str(path)) for name in ("axes", "settings", "rows")}
    rows = [_row(name, given["rows"], path) for name in given["rows"]]
    if not rows:
        raise ConfigError(f"{path} has no rows: it must have a table such as [rows.fedmitr].")
    overrides = dict(overrides or {})
    common = {**_flat(given["settings"]), **overrides}
    for key in [*common, *(key for row in rows for key in row.settings)]:
        if key.startswith(WITHOUT_MEANING) and key != "server.eval-batch-size":
            raise ConfigError(
                f"{path}: {key} means nothing in an experiment, where a row's method says what is "
                "done with the uploads: leave it out."
            )
    _require_one_place(common, overrides, rows, path)
    own = parse_config(common).partition
    defaults = {"kind": [own.kind], "alpha": [own.alpha], "clients": [5], "seeds": [0, 1, 2]}
    defaults |= {"attack": [NO_ATTACK], "attackers": [1]}
    _only(given["axes"], AXES, f"{path}, axes")
    axes = {name: _axis(name, {**defaults, **given["axes"]}[name], path) for name in AXES}
    for attack in axes["attack"]:
        _one_of(attack, (NO_ATTACK, ABSENT, *ATTACKS), "an attack", path)
    attacks = [
        (attack, number if attack != NO_ATTACK else 0)
        for attack, number in itertools.product(axes["attack"], axes["attackers"])
    ]
    cells = []
    for federation, attack in itertools.product(_federations(axes), dict.fromkeys(attacks)):
        dealt = {"seed": federation.seed, "partition.kind": federation.kind}
        if federation.alpha is not None:
            dealt["partition.alpha"] = federation.alpha
        for row in rows:
            config = parse_config({**common, **dealt, **row.settings})
            if config.inversion.backend != "local":
                raise ConfigError(
                    f"{path}: inversion.backend = {config.inversion.backend!r} is for a run, whose "
                    "time is not compared: leave it out, and use --workers."
                )
            cells.append(Cell(row, federation, config, *attack))
    curve = _curve(table.get("figure"), cells[0].config, path)
    against = _against(_table(table, "table", str(path)), rows, path)
    return Grid(str(table.get("title", path.stem)), tuple(cells), curve, against)


def _federations(axes: Mapping[str, list[Any]]) -> list[Federation]:
    """All of them; seeds last, so that the first whole column of a table is there early."""
    product = itertools.product(axes["seeds"], axes["kind"], axes["alpha"], axes["clients"])
    made = [
        Federation(kind, None if kind in WITHOUT_ALPHA else alpha, clients, seed)
        for seed, kind, alpha, clients in product
    ]
    return list(dict.fromkeys(made))


def _require_one_place(
    common: Mapping[str, Any], overrides: Mapping[str, Any], rows: Sequence[Row], path: Path
) -> None:
    for key, axis in KEYS_OF_AXES.items():
        if key in common or any(key in row.settings for row in rows):
            raise ConfigError(
                f"{path}: {key} belongs to the axes: give it there, as a list under axes.{axis}."
            )
    for row in rows:
        for key in sorted(overrides.keys() & row.settings.keys()):
            raise ConfigError(
                f"{key} = {overrides[key]!r} can't stand for all rows, because {path} sets it for "
                f"the row {row.name!r}: change the file."
            )


def _row(name: str, rows: Mapping[str, Any], path: Path) -> Row:
    given = _table(rows, name, f"{path}, rows")
    _only(given, ("method", "settings"), f"{path}, rows.{name}")
    method = given.get("method", name)
    if not isinstance(method, str) or method not in METHODS:  # or perhaps another package's
        _one_of(method, known_methods(), "a method", path)
    return Row(name, method, _flat(_table(given, "settings", f"{path}, rows.{name}")))


def _one_of(value: Any, known: Iterable[str], what: str, path: Path) -> None:
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{path}: {value!r} is not {what}; known are {', '.join(known)}.")


def _axis(name: str, values: Any, path: Path) -> list[Any]:
    kind = AXES[name]
    allowed = (int, float) if kind is float else (kind,)
    good = (
        isinstance(values, list)
        and values
        and all(isinstance(value, allowed) and not isinstance(value, bool) for value in values)
    )
    if good and kind is float:  # a whole number may be too large for one
        good = max(map(abs, values)) <= sys.float_info.max
    if not good or len({kind(value) for value in values}) < len(values):
        words = {str: "names", float: "numbers", int: "whole numbers"}[kind]
        raise ConfigError(f"{path}: axes.{name} = {values!r} must be a list of different {words}.")
    if name in ("clients", "attackers") and min(values) < 1:
        raise ConfigError(f"{path}: axes.{name} = {values!r} must be numbers of at least 1.")
    return [kind(value) for value in values]


def _against(given: Mapping[str, Any], rows: Sequence[Row], path: Path) -> tuple[str, ...]:
    _only(given, ("against",), f"{path}, table")
    ours = [row.name for row in rows if row.method == "fedmitr"]
    names = given.get("against", ours[:1])
    known = [row.name for row in rows]
    if not isinstance(names, list) or not all(name in known for name in names):
        raise ConfigError(
            f"{path}: table.against = {names!r} must be a list of rows; known are "
            f"{', '.join(known)}."
        )
    return tuple(dict.fromkeys(names))


def _curve(figure: Any, config: Config, path: Path) -> Curve | None:
    if figure is None:
        return None
    figure = _table({"figure": figure}, "figure", str(path))
    _only(figure, ("x", "line"), f"{path}, figure")
    x, line = figure.get("x"), figure.get("line")
    lines = line if isinstance(line, list) else [line]
    for name, keys in (("x", [x]), ("line", lines)):
        if not keys or not all(isinstance(key, str) and key in flatten(config) for key in keys):
            raise ConfigError(
                f"{path}: figure.{name} = {figure.get(name)!r} must be a setting, such as "
                "'inversion.iterations'."
            )
    return Curve(str(x), tuple(map(str, lines)))


def _table(holder: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    found = holder.get(name, {})
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where}: {name} = {found!r} must be a table, such as [{name}].")
    return found


def _only(table: Mapping[str, Any], known: Any, where: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: {key!r} is unknown; known are {', '.join(known)}.")


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Bring settings, which may stand as ``"a.b" = 1`` or as tables, to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
