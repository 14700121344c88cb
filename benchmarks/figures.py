"""Curves of what each doubling costs."""

from pathlib import Path

import pandas as pd

from fedmitr_app.reporting.canvas import canvas, faint_grid

NAMES = {"clients": "clients", "batch": "batch", "image": "image side, px", "iterations": "steps"}


def growth_figure(table: pd.DataFrame, path: Path) -> None:
    """Draw time against each size, with the line of plain proportion from the smallest one."""
    found = {name: table[table.benchmark == f"growth of {name}"] for name in NAMES}
    found = {name: part[part.measure == "time"] for name, part in found.items() if len(part)}
    if not found:
        return
    with canvas(path, 2.6 * len(found), 2.6) as figure:
        panels = figure.subplots(1, len(found), squeeze=False)[0]
        for axes, (name, part) in zip(panels, found.items(), strict=True):
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
            axes.set_xlabel(NAMES[name])
            faint_grid(axes, "y")
        panels[0].set_ylabel("seconds a batch")
        panels[0].legend(fontsize=8)
