"""Figures of a grid are drawn from what the frame says, and only where it says enough."""

import contextlib

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedmitr_app.experiments import figures
from fedmitr_app.experiments.figures import draw_figures, spread_out
from fedmitr_app.experiments.grid import Curve
from fedmitr_app.report.canvas import canvas


def frame(alphas=(0.1,), rows=(("ours", "fedmitr"), ("$odd_name%", "fedavg")), **extra):
    lines = [
        {
            "row": name,
            "method": method,
            "kind": "dirichlet",
            "alpha": alpha,
            "clients": 5,
            "seed": seed,
            "status": "ok",
            "accuracy": 0.1 + 0.2 * index + 0.05 * seed,
            "seconds": 10.0**index,
            "steps": 100 * (method == "fedmitr"),
            "attack": "none",
            "attackers": 0,
            "split": "test",
            **extra,
        }
        for alpha in alphas
        for index, (name, method) in enumerate(rows)
        for seed in (0, 1)
    ]
    return pd.DataFrame(lines)


def drawn(data, folder, curve=None):
    paths = draw_figures(data, folder, curve)
    for path in paths:
        with Image.open(path) as image:
            assert len(image.convert("L").getcolors()) > 20, path  # not blank
    return sorted(path.name for path in paths)


def test_one_federation_has_bars_and_compute(tmp_path):
    assert drawn(frame(), tmp_path) == ["bars-1.png", "compute-1.png"]


def test_several_alphas_have_lines(tmp_path):
    names = drawn(frame((0.1, 0.5)), tmp_path)
    assert names == ["alpha-1.png", "bars-1.png", "bars-2.png", "compute-1.png", "compute-2.png"]


def test_attacks_stand_in_one_figure(tmp_path):
    both = [frame(), frame(attack="scale", attackers=2)]
    assert drawn(pd.concat(both), tmp_path) == ["attacks-1.png"]


def test_what_was_not_run_or_took_no_time_is_left_out(tmp_path):
    data = frame(rows=(("ours", "fedmitr"),))
    data["seconds"] = 0.0
    assert drawn(data, tmp_path) == ["bars-1.png"]
    data["status"] = "not run: no images"
    assert drawn(data, tmp_path) == []


@pytest.mark.parametrize("values", [[0, 30, 100, 400], ["none", "token", "image", "background"]])
def test_a_curve_over_a_setting(tmp_path, values):
    rows = [(f"row {value}", "fedmitr") for value in values]
    data = frame(rows=rows)
    data["inversion.iterations"] = [value for value in values for _ in range(2)]
    data["inversion.initial-images"] = ["white", "procedural"] * len(values)
    names = drawn(data, tmp_path, Curve("inversion.iterations", ("inversion.initial-images",)))
    assert names == ["bars-1.png", "compute-1.png", "curve-1.png"]


def looking(monkeypatch, at):
    """Show the axes of every figure to ``at`` once they are drawn."""

    @contextlib.contextmanager
    def look(path, *size):
        with canvas(path, *size) as figure:
            yield figure
            figure.draw_without_rendering()
            (axes,) = figure.axes
            at(axes)

    monkeypatch.setattr(figures, "canvas", look)


@pytest.mark.parametrize("seconds", [(56.0, 66.0), (0.5, 3.0), (20.0, 210.0), (1.0, 400.0)])
def test_the_axis_of_time_has_numbers_on_it(tmp_path, monkeypatch, seconds):
    shown = []

    def ticks(axes):
        low, high = axes.get_xlim()
        shown.extend(tick for tick in axes.get_xticks() if low <= tick <= high)

    looking(monkeypatch, ticks)
    data = frame()
    data["seconds"] = [value for value in seconds for _ in range(2)]
    figures.accuracy_against_compute(data, tmp_path / "compute.png")
    assert len(shown) >= 2


@pytest.mark.parametrize("spread", [0.005, 0.03, 0.3])
def test_no_two_places_of_the_axis_of_accuracy_are_named_alike(tmp_path, monkeypatch, spread):
    shown = []

    def names(axes):
        shown.extend(text.get_text() for text in axes.get_yticklabels())

    looking(monkeypatch, names)
    data = frame()
    data["accuracy"] = [0.87 + spread * place / 3 for place in range(4)]
    figures.accuracy_against_compute(data, tmp_path / "compute.png")
    assert len(set(shown)) == len(shown) > 2


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=20).map(sorted),
    st.floats(0.0, 1 / 20),
)
def test_names_are_apart_in_order_and_within_the_figure(values, step):
    placed = spread_out(values, step, 0.0, 1.0)
    gaps = [later - earlier for earlier, later in zip(placed, placed[1:])]
    assert all(gap >= step - 1e-9 for gap in gaps)
    assert placed[0] >= -1e-9 and placed[-1] <= 1 + 1e-9
    if all(later - earlier >= step for earlier, later in zip(values, values[1:])):
        assert placed == pytest.approx(values)
