"""Figures of a grid: bars, accuracy against α, accuracy against the server's time."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from fedmitr_app.experiments.tables import groups
from fedmitr_app.reporting.canvas import COLOURS, INK, MUTED, canvas, faint_grid, label

HIGHLIGHT = "fedmitr"
_WIDE = 6.4


def draw_figures(
    frame: pd.DataFrame, folder: Path, curve: tuple[str, str] | None = None
) -> list[Path]:
    """Draw what the grid's axes give, and return the PNGs' paths.

    ``bars-<n>.png`` and ``compute-<n>.png`` for each federation, ``alpha-<n>.png`` for each
    kind and number of clients with several α, ``curve-<n>.png`` for each federation if
    ``curve`` names the settings to draw.
    """
    good = frame[frame["status"] == "ok"]
    paths = []
    for number, part in enumerate(groups(good).values(), 1):
        paths.append(accuracy_bars(part, folder / f"bars-{number}.png"))
        if (part["seconds"] > 0).any():
            paths.append(accuracy_against_compute(part, folder / f"compute-{number}.png"))
        if curve is not None:
            paths.append(accuracy_against_setting(part, *curve, folder / f"curve-{number}.png"))
    for number, (_, part) in enumerate(good.groupby(["kind", "clients"], sort=False), 1):
        if part["alpha"].nunique() > 1:
            paths.append(accuracy_against_alpha(part, folder / f"alpha-{number}.png"))
    return paths


def accuracy_bars(part: pd.DataFrame, path: Path) -> Path:
    """Draw each row's mean accuracy, its seeds as dots."""
    names = list(dict.fromkeys(part["row"]))
    with canvas(path, _WIDE, 0.7 + 0.3 * len(names)) as figure:
        axes = figure.subplots()
        colours = _colours(part)
        for place, name in enumerate(names):
            row = part[part["row"] == name]
            mean = row["accuracy"].mean()
            axes.barh(place, mean, height=0.66, color=colours[name], alpha=0.85)
            axes.scatter(row["accuracy"], [place] * len(row), s=10, color=INK, zorder=3)
            right = max(row["accuracy"].max(), mean)
            axes.text(right + 0.015, place, f"{100 * mean:.1f}", va="center", color=INK)
        axes.set_yticks(range(len(names)), [label(name, 34) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, min(1.0, part["accuracy"].max() + 0.12))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel(f"{_measured(part)} (bar: mean, dots: seeds)")
        faint_grid(axes, "x")
    return path


def accuracy_against_compute(part: pd.DataFrame, path: Path) -> Path:
    """Draw each row's mean accuracy over the server's seconds, on a logarithmic axis."""
    taken = part[part["seconds"] > 0].groupby("row", sort=False)
    with canvas(path, _WIDE, 4.0) as figure:
        axes = figure.subplots()
        colours = _colours(part)
        for name, row in taken:
            x, y = row["seconds"].mean(), row["accuracy"].mean()
            spread = 0.0 if len(row) == 1 else row["accuracy"].std()
            axes.errorbar(x, y, spread, fmt="o", color=colours[name], markersize=6, capsize=2)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * (high / low) ** 0.25)  # room for the names
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        _percent(axes, part)
        axes.set_xlabel("server time per seed, seconds (of processor time on a CPU)")
        _name_points(axes, {n: (r["seconds"].mean(), r["accuracy"].mean()) for n, r in taken})
        faint_grid(axes, "y")
    return path


def accuracy_against_alpha(part: pd.DataFrame, path: Path) -> Path:
    """Draw a line for each row over the Dirichlet α."""
    alphas = sorted(part["alpha"].unique())
    with canvas(path, _WIDE, 4.0) as figure:
        axes = figure.subplots()
        colours = _colours(part)
        for name, row in part.groupby("row", sort=False):
            by_alpha = row.groupby("alpha")["accuracy"]
            mean, spread = by_alpha.mean(), by_alpha.std().fillna(0.0)
            places = [alphas.index(alpha) for alpha in mean.index]
            axes.errorbar(
                places, mean, spread, color=colours[name], marker="o", capsize=2, label=name
            )
        axes.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        axes.set_xlabel("Dirichlet α (left: more skewed)")
        _percent(axes, part)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        faint_grid(axes, "y")
    return path


def accuracy_against_setting(part: pd.DataFrame, x: str, line: str, path: Path) -> Path:
    """Draw accuracy over a setting, a line for each value of another one.

    Numbers stand at their places on a scale that is linear near 0 and logarithmic beyond.
    """
    with canvas(path, _WIDE, 4.0) as figure:
        axes = figure.subplots()
        numeric = pd.api.types.is_numeric_dtype(part[x])
        for name, row in part.groupby(line, sort=False):
            by_value = row.groupby(x, sort=numeric)["accuracy"]
            mean, spread = by_value.mean(), by_value.std().fillna(0.0)
            axes.errorbar(mean.index, mean, spread, marker="o", capsize=2, label=label(name))
        if numeric:
            values = sorted(part[x].unique())
            least = min((value for value in values if value > 0), default=1)
            axes.set_xscale("symlog", linthresh=least)
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()
        axes.set_xlabel(x)
        _percent(axes, part)
        axes.legend(title=line)
        faint_grid(axes, "y")
    return path


def _percent(axes: Axes, part: pd.DataFrame) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(_measured(part))


def _measured(part: pd.DataFrame) -> str:
    """Say on which images: those that choose settings are no test."""
    return "validation accuracy" if "validation" in set(part["split"]) else "test accuracy"


def _name_points(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write names beside points, pushed apart vertically where they would overlap."""
    low, high = axes.get_ylim()
    step, last = (high - low) / 22, -np.inf
    for name, (x, y) in sorted(points.items(), key=lambda item: item[1][1]):
        last = max(y, last + step)
        axes.annotate(
            label(name, 26),
            (x, y),
            xytext=(x * 1.06, last),
            va="center",
            color=MUTED,
            fontsize=8,
        )


def _colours(part: pd.DataFrame) -> dict[str, str]:
    """Our method in the student's colour, the others each in its own."""
    names = list(dict.fromkeys(part["row"]))
    ours = set(part.loc[part["method"] == HIGHLIGHT, "row"])
    palette = [matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps["tab20"].colors]
    others = [name for name in names if name not in ours]
    colours = {name: palette[index % len(palette)] for index, name in enumerate(others)}
    return {name: COLOURS["student"] if name in ours else colours[name] for name in names}
