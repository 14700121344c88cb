"""One look for all figures, without pyplot and its global state."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedmitr_app.utils.files import write_atomically
from fedmitr_app.utils.text import harmless

INK = "#1f2937"
MUTED = "#6b7280"
FAINT = "#e5e7eb"
COLOURS = {
    "student": "#e4572e",
    "teacher": "#2a7f8e",
    "fedavg": "#7c8798",
    "control": "#d9a441",
    "client": "#b9c4d6",
}
DPI = 150
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # the one that comes with matplotlib
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.grid": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    # Names come from data sets and clients: a "$" in one is a dollar sign.
    "text.parse_math": False,
}


@contextlib.contextmanager
def canvas(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Give a figure of ``width`` x ``height`` inches to draw on, then save it as PNG.

    Raises
    ------
    RunFolderError
        When the file cannot be written.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        yield figure
        # Without its metadata the same figure is the same file under the same fonts.
        plain = {"Software": None}
        write_atomically(
            path,
            lambda file: figure.savefig(file, format="png", dpi=DPI, metadata=plain),
        )


def label(text: object, longest: int = 18) -> str:
    """Return text that any font can draw on one line of a figure."""
    return harmless(text, longest)


def some_ticks(names: Sequence[str], most: int) -> tuple[list[int], list[str]]:
    """Return positions and names of evenly spread ticks, at most ``most`` of them."""
    step = -(-len(names) // most) if names else 1
    places = list(range(0, len(names), step))
    return places, [label(names[place], 14) for place in places]


def faint_grid(axes: Axes, axis: Literal["x", "y", "both"]) -> None:
    """Draw grid lines behind the data along one axis."""
    axes.grid(True, axis=axis)
    axes.spines[["left", "bottom"]].set_visible(False)
