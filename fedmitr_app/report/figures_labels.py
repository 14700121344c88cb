"""Figures of classes: who holds which labels, and which are taken for which."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.ticker import MaxNLocator

from fedmitr_app.report.canvas import COLOURS, FAINT, INK, canvas, some_ticks

_MOST_COLUMNS = 250
_MOST_IN_MATRIX, _MOST_NAMED = 100, 30


def label_distribution(
    matrix: Any,
    path: Path,
    *,
    client_names: Sequence[str] = (),
    class_names: Sequence[str] = (),
) -> Path | None:
    """Draw how many images of each class each client holds.

    Parameters
    ----------
    matrix : array-like of int
        [clients, classes].
    path : Path
        The PNG to write.
    client_names, class_names : Sequence[str]
        One per row and per column; numbers when they don't fit the matrix.
    """
    counts = np.asarray(matrix if matrix is not None else [])
    if counts.ndim != 2 or 0 in counts.shape or counts.sum() == 0:
        return None
    clients, classes = counts.shape
    rows = list(client_names) if len(client_names) == clients else _numbers(clients)
    columns = list(class_names) if len(class_names) == classes else _numbers(classes)
    group = -(-classes // _MOST_COLUMNS)
    if group > 1:  # a column has to be a pixel wide at least
        counts = np.add.reduceat(counts, np.arange(0, classes, group), axis=1)
        columns = columns[::group]
    in_figures = clients <= 25 and classes <= 20
    height = 1.1 + (0.34 * clients if in_figures else min(0.34 * clients, 5.5))
    with canvas(path, 6.4, max(height, 1.9)) as figure:
        axes, totals = figure.subplots(1, 2, sharey=True, width_ratios=[6, 1])
        shades = LinearSegmentedColormap.from_list("label", ["#ffffff", "#9cc5cc", "#1c5f6b"])
        # The square root lets a handful of images be seen beside thousands.
        image = axes.imshow(
            counts, aspect="auto", cmap=shades, norm=PowerNorm(0.5, 0, max(counts.max(), 1))
        )
        axes.set_xticks(*some_ticks(columns, 20))
        axes.set_yticks(*some_ticks(rows, 25))
        if max(map(len, columns)) > 4 and classes > 4:
            axes.tick_params(axis="x", rotation=35 if classes <= 20 else 90)
            axes.set_xticks(axes.get_xticks(), axes.get_xticklabels(), ha="right")
        axes.set_xlabel("class" if group == 1 else f"class, in groups of {group}")
        axes.spines[:].set_visible(False)
        if in_figures:
            _grid_of_numbers(axes, counts)
        else:
            figure.colorbar(image, ax=totals, label="images", aspect=30, pad=0.02)
        _totals(totals, counts.sum(axis=1), in_figures)
    return path


def confusion(matrix: Any, path: Path, class_names: Sequence[str] = ()) -> Path | None:
    """Draw what share of each class's images gets which answer.

    Parameters
    ----------
    matrix : array-like of int
        [classes, answers].
    path : Path
        The PNG to write.
    class_names : Sequence[str]
        One per row. Where there are more than 30 the axes have none, and for more than 100
        nothing is drawn: no square could be seen.
    """
    counts = np.asarray(matrix)
    if counts.ndim != 2 or not 2 <= len(counts) <= _MOST_IN_MATRIX or not counts.sum():
        return None
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = list(class_names) if len(class_names) == classes else _numbers(classes)
    side = min(max(2.6, 1.4 + 0.34 * classes), 5.2)
    with canvas(path, side, side) as figure:
        axes = figure.subplots()
        shades = LinearSegmentedColormap.from_list("share", ["#ffffff", "#9cc5cc", "#1c5f6b"])
        axes.imshow(shares, cmap=shades, norm=PowerNorm(0.6, 0, 1))
        axes.set_xlabel("answer")
        axes.set_ylabel("class")
        axes.spines[:].set_visible(False)
        if classes > _MOST_NAMED:
            axes.set_xticks([])
            axes.set_yticks([])
        else:
            axes.set_xticks(*some_ticks(names, classes))
            axes.set_yticks(*some_ticks(names, classes))
            if max(map(len, names)) > 2:
                axes.tick_params(axis="x", rotation=90)
        if classes <= 10:
            for (row, column), share in np.ndenumerate(shares):
                if share >= 0.005:
                    colour = "white" if share > 0.4 else INK
                    axes.text(
                        column,
                        row,
                        f"{100 * share:.0f}",
                        ha="center",
                        va="center",
                        color=colour,
                        fontsize=8,
                    )
    return path


def _grid_of_numbers(axes: Axes, counts: np.ndarray) -> None:
    clients, classes = counts.shape
    axes.set_xticks(np.arange(-0.5, classes), minor=True)
    axes.set_yticks(np.arange(-0.5, clients), minor=True)
    axes.grid(which="minor", color=FAINT, linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    dark = 0.3 * counts.max()
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if count > dark else INK
            axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=8)


def _totals(axes: Axes, totals: np.ndarray, in_figures: bool) -> None:
    axes.barh(np.arange(len(totals)), totals, height=0.62, color=COLOURS["client"])
    axes.tick_params(axis="y", which="both", length=0, labelleft=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel("images in all")
    if not in_figures:
        axes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
        return
    axes.set_xticks([])
    axes.set_xlim(0, totals.max() * 1.55)
    for row, total in enumerate(totals):
        axes.text(total + 0.04 * totals.max(), row, f"{total}", va="center", fontsize=8)


def _numbers(count: int) -> list[str]:
    return [str(index) for index in range(count)]
