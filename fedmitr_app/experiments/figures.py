"""Figures of a grid: bars, accuracy against α, attacks, or the server's time."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, PercentFormatter

from fedmitr_app.experiments.grid import Curve
from fedmitr_app.experiments.tables import attacks, groups
from fedmitr_app.report.canvas import COLOURS, FAINT, INK, MUTED, canvas, faint_grid, label

HIGHLIGHT = "fedmitr"
_WIDE = 6.4


class _Point(NamedTuple):
    """A row's place in a figure of accuracy against compute."""

    x: float
    y: float
    colour: str
    ours: bool


def draw_figures(frame: pd.DataFrame, folder: Path, curve: Curve | None = None) -> list[Path]:
    """Draw what the grid's axes give, and return the PNGs' paths.

    ``bars-<n>.png`` and ``compute-<n>.png`` for each federation, ``alpha-<n>.png`` for each
    kind and number of clients with several α (IID shards stand at its end), ``curve-<n>.png``
    for each federation if ``curve`` names the settings to draw. A federation that is attacked has
    ``attacks-<n>.png`` instead.
    """
    good = frame[frame["status"] == "ok"]
    paths = []
    for number, part in enumerate(groups(good).values(), 1):
        if part["attackers"].any():
            paths.append(accuracy_under_attack(part, folder / f"attacks-{number}.png"))
            continue
        paths.append(accuracy_bars(part, folder / f"bars-{number}.png"))
        if (part["seconds"] > 0).any():
            paths.append(accuracy_against_compute(part, folder / f"compute-{number}.png"))
        if curve is not None:
            paths.append(accuracy_against_setting(part, curve, folder / f"curve-{number}.png"))
    good = good[good["attackers"] == 0]
    for number, ((_, clients), part) in enumerate(good.groupby(["kind", "clients"], sort=False), 1):
        if part["alpha"].nunique() > 1:
            even = good[(good["kind"] == "iid") & (good["clients"] == clients)]
            drawn = pd.concat([part, even.assign(alpha=math.inf)])
            paths.append(accuracy_against_alpha(drawn, folder / f"alpha-{number}.png"))
    return paths


def accuracy_bars(part: pd.DataFrame, path: Path) -> Path:
    """Draw each row's mean accuracy, its seeds as dots."""
    names = list(dict.fromkeys(part["row"]))
    with canvas(path, _WIDE, 0.7 + 0.22 * len(names)) as figure:
        axes = figure.subplots()
        for place, name in enumerate(names):
            row = part[part["row"] == name]
            mean = row["accuracy"].mean()
            axes.barh(place, mean, height=0.66, color=_colour(row), alpha=0.85)
            axes.scatter(row["accuracy"], [place] * len(row), s=8, color=INK, zorder=3)
            right = max(row["accuracy"].max(), mean)
            axes.text(right + 0.015, place, f"{100 * mean:.1f}", va="center", color=INK, fontsize=8)
        axes.set_yticks(range(len(names)), [label(name, 46) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, min(1.0, part["accuracy"].max() + 0.12))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel(f"{_measured(part)} (bar: mean, dots: seeds)")
        faint_grid(axes, "x")
    return path


def accuracy_against_compute(part: pd.DataFrame, path: Path) -> Path:
    """Draw each row's mean accuracy over the server's seconds, logarithmic if they differ much."""
    taken = part[part["seconds"] > 0].groupby("row", sort=False)
    height = max(3.6, 0.2 * len(taken))
    with canvas(path, _WIDE + 1.6, height) as figure:
        axes = figure.subplots()
        points: dict[str, _Point] = {}
        for name, row in taken:
            x, y = row["seconds"].mean(), row["accuracy"].mean()
            spread = 0.0 if len(row) == 1 else row["accuracy"].std()
            point = _Point(x, y, _colour(row), ours=row["method"].iloc[0] == HIGHLIGHT)
            # Ours in front of what may stand at the same place.
            front = 4 if point.ours else 3
            axes.errorbar(
                x, y, spread, fmt="o", color=point.colour, markersize=6, capsize=2, zorder=front
            )
            points[str(name)] = point
        times = [point.x for point in points.values()]
        if max(times) >= 10 * min(times):  # else a logarithmic axis might have no tick at all
            axes.set_xscale("log")
            wide = max(times) > 1e4 * min(times)  # numbers would touch
            axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
            axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        _percent(axes, part)
        axes.set_xlabel("server time per seed, seconds (of processor time on a CPU)")
        low, high = axes.get_ylim()
        _name_points(axes, points, step=0.2 * (high - low) / height)
        faint_grid(axes, "y")
    return path


def accuracy_against_alpha(part: pd.DataFrame, path: Path) -> Path:
    """Draw a line for each row over the Dirichlet α; an infinite one stands for IID shards."""
    alphas = sorted(part["alpha"].unique())
    with canvas(path, _WIDE, 4.0) as figure:
        axes = figure.subplots()
        colours = _colours(part)
        for name, row in part.groupby("row", sort=False):
            by_alpha = row.groupby("alpha")["accuracy"]
            mean, spread = by_alpha.mean(), by_alpha.std().fillna(0.0)
            places = [alphas.index(alpha) for alpha in mean.index]
            colour, named = colours[name], label(name, 46)
            axes.errorbar(places, mean, spread, marker="o", capsize=2, color=colour, label=named)
        names = ["IID" if alpha == math.inf else f"{alpha:g}" for alpha in alphas]
        axes.set_xticks(range(len(alphas)), names)
        axes.set_xlabel("Dirichlet α (left: more skewed)")
        _percent(axes, part)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        faint_grid(axes, "y")
    return path


def accuracy_under_attack(part: pd.DataFrame, path: Path) -> Path:
    """Draw each row's mean accuracy as a dot, a band of the page for each attack."""
    names, bands = list(dict.fromkeys(part["row"])), attacks(part)
    colours, step = _colours(part), 0.8 / len(names)
    with canvas(path, _WIDE, 1.0 + 0.075 * (len(names) + 1) * len(bands)) as figure:
        axes = figure.subplots()
        for place, name in enumerate(names):
            row = part[part["row"] == name]
            under = [lines[lines["row"] == name]["accuracy"] for lines in bands.values()]
            heights = [band + (place - (len(names) - 1) / 2) * step for band in range(len(bands))]
            axes.errorbar(
                [values.mean() for values in under],
                heights,
                xerr=[0.0 if len(values) < 2 else values.std() for values in under],
                fmt="D" if (row["steps"] > 0).any() else "o",
                markersize=4,
                elinewidth=0.8,
                color=colours[name],
                label=label(name, 46),
            )
        for band in range(1, len(bands), 2):
            axes.axhspan(band - 0.5, band + 0.5, color=FAINT, alpha=0.35, zorder=0)
        axes.set_yticks(range(len(bands)), list(bands))
        axes.set_ylim(len(bands) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel(f"{_measured(part)} (mean ± deviation; diamonds: a model was distilled)")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        faint_grid(axes, "x")
    return path


def accuracy_against_setting(part: pd.DataFrame, curve: Curve, path: Path) -> Path:
    """Draw accuracy over a setting, a line for each of the others' values.

    Numbers stand at their places on a scale that is linear near 0 and logarithmic beyond.
    """
    with canvas(path, _WIDE, 4.0) as figure:
        axes = figure.subplots()
        x, lines = curve
        numeric = pd.api.types.is_numeric_dtype(part[x])
        for which, row in part.groupby(list(lines), sort=False):
            name = ", ".join(map(str, which))
            by_value = row.groupby(x, sort=numeric)["accuracy"]
            mean, spread = by_value.mean(), by_value.std().fillna(0.0)
            axes.errorbar(mean.index, mean, spread, marker="o", capsize=2, label=label(name, 46))
        if numeric:
            values = sorted(part[x].unique())
            least = min((value for value in values if value > 0), default=1)
            axes.set_xscale("symlog", linthresh=least)
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()
        axes.set_xlabel(x)
        _percent(axes, part)
        axes.legend(title=", ".join(lines))
        faint_grid(axes, "y")
    return path


def _percent(axes: Axes, part: pd.DataFrame) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel(_measured(part))


def _measured(part: pd.DataFrame) -> str:
    """Say on which images: those that choose settings are no test."""
    return "validation accuracy" if "validation" in set(part["split"]) else "test accuracy"


def _name_points(axes: Axes, points: Mapping[str, _Point], step: float) -> None:
    """Write names in a column right of the axes, a thin line from each to its point."""
    low, high = axes.get_ylim()
    ranked = sorted(points.items(), key=lambda item: item[1].y)
    heights = spread_out([point.y for _, point in ranked], step, low, high)
    for (name, point), height in zip(ranked, heights, strict=True):
        axes.annotate(
            f"{label(name, 46)}  {100 * point.y:.1f}",
            (point.x, point.y),
            xytext=(1.03, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=INK if point.ours else MUTED,
            weight="bold" if point.ours else "normal",
            fontsize=8,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0.0, 0.5),  # ends where the name begins
                "color": point.colour,
                "linewidth": 0.6,
                "alpha": 0.6,
            },
        )


def spread_out(values: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Move ascending values apart by ``step`` at least, within bounds where there is room."""
    placed: list[float] = []
    for value in values:
        placed.append(max(value, placed[-1] + step if placed else low))
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], high)
        high = placed[index] - step
    return placed


def _colour(row: pd.DataFrame) -> str:
    """Ours, what has no single model, what no server can have, and the rivals."""
    kinds = {"ensemble": COLOURS["teacher"], "real-images": COLOURS["control"]}
    method = row["method"].iloc[0]
    return COLOURS["student"] if method == HIGHLIGHT else kinds.get(method, COLOURS["fedavg"])


def _colours(part: pd.DataFrame) -> dict[str, str]:
    """Our method in the student's colour if one row is its, the others each in its own."""
    names = list(dict.fromkeys(part["row"]))
    ours = set(part.loc[part["method"] == HIGHLIGHT, "row"])
    ours = ours if len(ours) == 1 else set()
    tab20 = matplotlib.colormaps["tab20"]
    palette = [matplotlib.colors.to_hex(tab20(place)) for place in range(tab20.N)]
    others = [name for name in names if name not in ours]
    colours = {name: palette[index % len(palette)] for index, name in enumerate(others)}
    return {name: COLOURS["student"] if name in ours else colours[name] for name in names}
