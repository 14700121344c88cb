"""Curves of what each doubling costs."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from fedmitr_app.report.canvas import canvas, faint_grid

NAMES = {"clients": "clients", "batch": "batch", "image": "image side, px", "iterations": "steps"}
MEASURES = {"time": "seconds a batch", "peak memory": "peak memory, MiB"}


def growth_figure(table: pd.DataFrame, path: Path) -> None:
    """Draw time and memory against each size, and what plain proportion would make of it."""
    found = {name: table[table.benchmark == f"growth of {name}"] for name in NAMES}
    found = {name: part for name, part in found.items() if len(part)}
    if not found:
        return
    with canvas(path, 2.6 * len(found), 2.3 * len(MEASURES)) as figure:
        rows = figure.subplots(len(MEASURES), len(found), squeeze=False, sharex="col")
        for panels, (measure, title) in zip(rows, MEASURES.items(), strict=True):
            for axes, (name, part) in zip(panels, found.items(), strict=True):
                _curve(axes, name, part[part.measure == measure])
            panels[0].set_ylabel(title)
        for axes, name in zip(rows[-1], found, strict=True):
            axes.set_xlabel(NAMES[name])
        rows[0][0].legend(fontsize=8)


def _curve(axes: Axes, name: str, part: pd.DataFrame) -> None:
    sizes = part[name].astype(float)
    axes.plot(sizes, part.value, marker="o", color="#2a7f8e", label="measured")
    # Twice the side is four times the patches.
    power = 2 if name == "image" else 1
    straight = part.value.iloc[0] * (sizes / sizes.iloc[0]) ** power
    axes.plot(sizes, straight, color="#7c8798", linestyle=":", label="in proportion")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(list(sizes), [f"{size:g}" for size in sizes])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    faint_grid(axes, "y")
