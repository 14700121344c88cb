"""Draw ``docs/pipeline.png``: what clients and server do in the one round."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from fedmitr_app.report.canvas import COLOURS, FAINT, INK, MUTED, canvas

BOXES = [
    ("invert", "Invert the ensemble\ninto images: steps only\nfor patches it looks at", 4.75, 2.35),
    ("relabel", "Label them softly,\nimages and (if wanted)\nbackground tokens", 7.15, 2.35),
    ("distil", "Distil one student,\nfrom the merged\nweights", 9.55, 2.35),
]
CLIENTS = ("client 1: cats", "client 2: dogs", "client K: owls")
WIDTH, HEIGHT = 2.05, 1.05


def box(axes: Axes, x: float, y: float, words: str, colour: str, width: float = WIDTH) -> None:
    """Draw a rounded box with its words in the middle."""
    place = (x - width / 2, y - HEIGHT / 2)
    style = "round,pad=0.02,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch(
            place, width, HEIGHT, style, facecolor="white", edgecolor=colour, linewidth=1.8
        )
    )
    axes.text(x, y, words, ha="center", va="center", fontsize=9.5, color=INK, linespacing=1.35)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """Draw an arrow."""
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=13, color=colour, linewidth=1.4
        )
    )


def draw(path: Path) -> None:
    """Draw the whole."""
    with canvas(path, 10.6, 3.9) as figure:
        axes = figure.subplots()
        axes.set(xlim=(0, 12.2), ylim=(-0.35, 4.3))
        axes.axis("off")
        for number, name in enumerate(CLIENTS):
            y = 3.55 - 1.3 * number
            box(axes, 1.1, y, f"{name}\nfine-tunes θ₀ on\nits own shard", COLOURS["client"])
            arrow(axes, (2.17, y), (3.4, 1.95 + 0.3 * (1 - number)), COLOURS["client"])
        axes.text(2.78, 3.42, "weights,\nonce", ha="center", va="center", fontsize=9, color=MUTED)
        frame = FancyBboxPatch(
            (3.5, -0.2),
            7.3,
            4.1,
            "round,pad=0,rounding_size=0.15",
            facecolor="#f6f7f9",
            edgecolor=FAINT,
        )
        axes.add_patch(frame)
        axes.text(7.15, 3.35, "server: holds no data", ha="center", fontsize=10, color=MUTED)
        for (_, words, x, y), colour in zip(BOXES, ("teacher", "control", "student"), strict=True):
            box(axes, x, y, words, COLOURS[colour])
        arrow(axes, (5.8, 2.35), (6.1, 2.35), INK)
        arrow(axes, (8.2, 2.35), (8.5, 2.35), INK)
        box(axes, 4.75, 0.55, "Uploads as an\nensemble: the teacher", COLOURS["teacher"])
        box(axes, 9.55, 0.55, "Uploads merged\ninto one model", COLOURS["fedavg"])
        arrow(axes, (4.75, 1.1), (4.75, 1.8), COLOURS["teacher"])
        arrow(axes, (9.55, 1.1), (9.55, 1.8), COLOURS["fedavg"])
        arrow(axes, (10.6, 2.35), (11.15, 2.35), COLOURS["student"])
        axes.text(11.2, 2.35, "global\nmodel", va="center", fontsize=10, color=COLOURS["student"])


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
