"""Figures of numbers: accuracies, and the curves of inversion and distillation.

Each function draws into a PNG and returns its path, or None when there is nothing
to draw.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedmitr_app.report.canvas import (
    COLOURS,
    INK,
    MUTED,
    canvas,
    faint_grid,
    label,
)
from fedmitr_app.report.data import Curves
from fedmitr_app.report.tables import RESULT_NAMES, natural_key

_BAR_NAMES = {
    "fedavg": "one-round FedAvg",
    "control": "initial images, not inverted",
    "teacher": "teacher (ensemble)",
    "student": "student",
}
_MOST_CLIENT_BARS = 15
_LINE_COLOURS = ("#2a7f8e", "#d9a441", "#7c8798", "#8e6aa8", "#5a9e6f")


def accuracy_bars(accuracy: Mapping[str, Any], path: Path) -> Path | None:
    """Draw the test accuracy of every client, FedAvg, control, teacher and student.

    Parameters
    ----------
    accuracy : Mapping[str, Any]
        "student", "teacher", "fedavg", "control" in [0, 1], and "clients", a mapping
        from client key to accuracy; what is missing or None is left out.
    path : Path
        The PNG to write.
    """
    bars, clients = accuracy_items(accuracy), _known_clients(accuracy)
    if not bars:
        return None
    many = len(clients) > _MOST_CLIENT_BARS
    with canvas(path, 6.4, 0.7 + 0.3 * len(bars)) as figure:
        axes = figure.subplots()
        _bars(axes, bars)
        if many:
            # Every client as a dot on its own bar; the jitter is fixed, not drawn.
            spread = 0.24 * np.sin(2.4 * np.arange(len(clients)))
            axes.texts[0].set_bbox({"facecolor": COLOURS["client"], "edgecolor": "none", "pad": 1})
            axes.texts[0].set_zorder(5)
            axes.scatter(list(clients.values()), spread, s=9, color=MUTED, alpha=0.6, linewidths=0)
        if (teacher := accuracy.get("teacher")) is not None:
            axes.axvline(teacher, color=COLOURS["teacher"], linewidth=1, ls=(0, (4, 3)))
    return path


def accuracy_items(accuracy: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Return a bar's name, share and kind for each client, or their median, and each result."""
    clients = _known_clients(accuracy)
    items = [(label(key, 22), share, "client") for key, share in clients.items()]
    if len(clients) > _MOST_CLIENT_BARS:
        middle = float(np.median(list(clients.values())))
        items = [(f"{len(clients)} clients (median)", middle, "client")]
    known = [key for key in _BAR_NAMES if accuracy.get(key) is not None]
    return [*items, *((_BAR_NAMES[key], float(accuracy[key]), key) for key in known)]


def _known_clients(accuracy: Mapping[str, Any]) -> dict[str, float]:
    given = accuracy.get("clients") or {}
    return {key: given[key] for key in sorted(given, key=natural_key) if given[key] is not None}


def _bars(axes: Axes, bars: list[tuple[str, float, str]]) -> None:
    places = np.arange(len(bars))
    axes.barh(
        places, [bar[1] for bar in bars], height=0.66, color=[COLOURS[bar[2]] for bar in bars]
    )
    axes.set_yticks(places, [bar[0] for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("accuracy on the held-out test set")
    faint_grid(axes, "x")
    for place, tick, (_, share, kind) in zip(places, axes.get_yticklabels(), bars, strict=True):
        strong = "bold" if kind == "student" else "normal"
        tick.set(color=INK, fontweight=strong)
        # On the bar where it fits, so that nothing is ever written over the edge.
        inside = share > 0.12
        colour = INK if not inside or kind in ("client", "control") else "white"
        where = (share - 0.008, "right") if inside else (share + 0.008, "left")
        axes.text(
            where[0],
            float(place),
            f"{100 * share:.1f}",
            ha=where[1],
            va="center",
            color=colour,
            fontweight=strong,
            fontsize=8.5,
        )


def accuracy_dots(
    groups: Sequence[tuple[str, Mapping[str, Sequence[float]]]], path: Path
) -> Path | None:
    """Draw the accuracies of several groups of runs, a dot for each run.

    Parameters
    ----------
    groups : Sequence[tuple[str, Mapping[str, Sequence[float]]]]
        A group's name, and the accuracies in [0, 1] of each kind of model: a key of
        ``RESULT_NAMES``.
    path : Path
        The PNG to write.
    """
    kinds = [kind for kind in RESULT_NAMES if any(found.get(kind) for _, found in groups)]
    if not kinds:
        return None
    with canvas(path, 6.4, 1.1 + 0.45 * len(groups)) as figure:
        axes = figure.subplots()
        for place, (_, found) in enumerate(groups):
            for kind in kinds:
                shares = found.get(kind) or ()
                colour = COLOURS.get(kind, COLOURS["client"])
                size = 42 if kind == "student" else 24
                axes.scatter(shares, [place] * len(shares), s=size, color=colour, zorder=3)
                if len(shares) > 1:
                    mean = float(np.mean(shares))
                    axes.vlines(mean, place - 0.28, place + 0.28, color=colour, linewidth=2)
        for kind in kinds:
            colour = COLOURS.get(kind, COLOURS["client"])
            axes.scatter([], [], color=colour, label=RESULT_NAMES[kind])
        axes.set_yticks(range(len(groups)), [label(name, 40) for name, _ in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("accuracy on the held-out test set")
        faint_grid(axes, "x")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return path


def inversion_curves(curves: Curves | None, path: Path) -> Path | None:
    """Draw loss and teacher confidence over the iterations, with the stops marked."""
    return _curves(curves, path, "iteration", "patches stopped")


def distillation_curves(curves: Curves | None, path: Path) -> Path | None:
    """Draw the loss, and its terms if given, over the steps."""
    return _curves(curves, path, "step", "mark")


def _curves(curves: Curves | None, path: Path, unit: str, mark: str) -> Path | None:
    if curves is None or not len(curves.steps) or not curves.values:
        return None
    losses = {key: values for key, values in curves.values.items() if key != "confidence"}
    confidence = {key: values for key, values in curves.values.items() if key == "confidence"}
    panels = [panel for panel in (losses, confidence) if panel]
    # One above the other, so that they can be read on a phone.
    with canvas(path, 5.0, 2.0 * len(panels) + 0.2) as figure:
        places = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, lines in zip(places, panels, strict=True):
            for index, (name, values) in enumerate(lines.items()):
                colour = COLOURS["student"] if index == 0 else _LINE_COLOURS[(index - 1) % 5]
                colour = COLOURS["teacher"] if name == "confidence" else colour
                # The axis names a lone line; the legend is then for the stops alone.
                shown = label(name) if len(lines) > 1 else "_"
                _line(axes, curves.steps, values, shown, colour)
            for index, stop in enumerate(curves.stops):
                axes.axvline(
                    stop, color=MUTED, linewidth=0.9, ls=(0, (2, 2)), label=mark * (index == 0)
                )
            axes.set_xlabel(unit)
            axes.set_ylabel(label(next(iter(lines)), 30) if len(lines) == 1 else "loss")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            faint_grid(axes, "y")
            if lines is confidence:
                axes.set_ylabel("teacher's confidence")
                axes.set_ylim(0, 1.02)
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            if len(lines) > 1 or len(curves.stops):
                axes.legend(fontsize=8)
    return path


def _line(
    axes: Axes, steps: Sequence[float], values: Sequence[float], name: str, colour: str
) -> None:
    points = np.asarray(values, dtype=float)
    places = np.asarray(steps, dtype=float)[: len(points)]
    points = points[: len(places)]
    if len(points) < 60:
        marker = "o" if len(points) < 15 else None  # a lone point has no line to be seen by
        axes.plot(places, points, color=colour, linewidth=1.8, marker=marker, ms=3, label=name)
        return
    axes.plot(places, points, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(places, _smooth(points), color=colour, linewidth=1.8, label=name)


def _smooth(points: np.ndarray) -> np.ndarray:
    """Return a running mean over a thirtieth of the curve; gaps (NaN) count for nothing."""
    half = max(len(points) // 60, 1)
    known = np.isfinite(points)
    kernel = np.ones(2 * half + 1)
    total = np.convolve(np.where(known, points, 0.0), kernel, mode="same")
    count = np.convolve(known.astype(float), kernel, mode="same")
    mean = np.full(len(points), np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean
