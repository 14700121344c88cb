"""Figures: they exist, have the size that was asked for, and survive odd data."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedmitr_app.report.canvas import COLOURS, DPI, label
from fedmitr_app.report.data import Curves, PoolSample
from fedmitr_app.report.figures import accuracy_bars, distillation_curves, inversion_curves
from fedmitr_app.report.figures_images import _outline, attention_maps, spread, synthetic_images
from fedmitr_app.report.figures_labels import label_distribution
from tests.helpers.made_up_run import make_data, make_pool

HOSTILE = ["$\\frac{1}", "a\nb\0c", "<script>", "\ud800", "x" * 500]


def pixels(path: Path | None) -> np.ndarray:
    assert path is not None
    return np.asarray(Image.open(path).convert("RGB"))


def has_colour(image: np.ndarray, colour: str) -> bool:
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    return bool((np.abs(image.astype(int) - wanted).sum(-1) < 6).any())


def test_the_accuracy_bars_show_every_kind(tmp_path: Path) -> None:
    image = pixels(accuracy_bars(make_data().accuracy, tmp_path / "bars.png"))
    assert image.shape[1] == round(6.4 * DPI)
    assert all(has_colour(image, colour) for colour in COLOURS.values())


def test_a_hundred_clients_take_no_more_room_than_one(tmp_path: Path) -> None:
    many = {f"client-{index}": index / 100 for index in range(100)}
    tall = pixels(accuracy_bars({"student": 0.5, "clients": many}, tmp_path / "many.png"))
    one = pixels(accuracy_bars({"student": 0.5, "clients": {"c": 0.1}}, tmp_path / "one.png"))
    assert tall.shape == one.shape


@pytest.mark.parametrize(
    "accuracy", [{}, {"student": None, "clients": {}}, {"clients": {"client-0": None}}]
)
def test_no_test_set_no_bars(tmp_path: Path, accuracy: dict) -> None:
    path = tmp_path / "bars.png"
    assert accuracy_bars(accuracy, path) is None
    assert not path.exists()


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (5, 10), (100, 1000)])
def test_label_distributions_of_any_size(tmp_path: Path, clients: int, classes: int) -> None:
    counts = np.random.default_rng(0).integers(0, 50, (clients, classes))
    image = pixels(label_distribution(counts, tmp_path / "labels.png"))
    assert image.shape[1] == int(6.4 * DPI)
    assert image.shape[0] < 11 * DPI
    assert image.std() > 5


@pytest.mark.parametrize("matrix", [None, [], np.zeros((3, 2), int), np.zeros((0, 2), int)])
def test_no_labels_no_figure(tmp_path: Path, matrix: object) -> None:
    assert label_distribution(matrix, tmp_path / "labels.png") is None


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_names_are_drawn_as_text(tmp_path: Path) -> None:
    pool = make_pool(images=5)
    named = PoolSample(pool.images, pool.patch_size, HOSTILE, pool.kept)
    assert synthetic_images(named, tmp_path / "images.png")
    assert accuracy_bars({"clients": dict.fromkeys(HOSTILE, 0.5)}, tmp_path / "bars.png")
    counts = np.ones((5, 5), int)
    assert label_distribution(
        counts, tmp_path / "labels.png", client_names=HOSTILE, class_names=HOSTILE
    )
    assert distillation_curves(Curves([0, 1], dict.fromkeys(HOSTILE, [1, 2])), tmp_path / "c.png")


def test_labels_are_one_short_line() -> None:
    assert label("a\n b\0c") == "a b?c"
    assert label("x" * 500, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(("channels", "dtype"), [(1, torch.float32), (3, torch.uint8)])
def test_stopped_patches_are_faded_and_living_ones_outlined(
    tmp_path: Path, channels: int, dtype: torch.dtype
) -> None:
    black = torch.zeros(1, channels, 8, 8, dtype=dtype)
    sample = PoolSample(black, patch_size=4, kept=torch.tensor([[0]]))
    image = pixels(synthetic_images(sample, tmp_path / "images.png"))
    assert has_colour(image, COLOURS["student"])
    # Five of eight patches' worth of black: the image, and the one patch that lives.
    dark = (image.max(-1) < 10).mean()
    faded = (np.abs(image.astype(int) - np.array([184, 188, 194])).sum(-1) < 12).mean()
    assert dark / faded == pytest.approx(5 / 3, rel=0.1)


def test_the_outline_runs_around_the_living_patches() -> None:
    alive = np.array([[True, True], [False, False]])
    segments = {tuple(map(tuple, segment)) for segment in _outline(alive, patch=4, left=10)}
    assert segments == {
        ((10, 0), (14, 0)),
        ((14, 0), (18, 0)),
        ((10, 4), (14, 4)),
        ((14, 4), (18, 4)),
        ((10, 0), (10, 4)),
        ((18, 0), (18, 4)),
    }


def test_kept_patches_may_differ_in_number(tmp_path: Path) -> None:
    pool = make_pool(images=2)
    kept = [torch.tensor([0, 5, 7]), torch.tensor([], dtype=torch.long)]
    assert synthetic_images(PoolSample(pool.images, 2, kept=kept), tmp_path / "images.png")


def test_no_images_no_figures(tmp_path: Path) -> None:
    none = PoolSample(torch.zeros(0, 1, 8, 8), patch_size=2)
    path = tmp_path / "images.png"
    assert synthetic_images(None, path) is synthetic_images(none, path) is None
    assert attention_maps(None, path) is None
    assert attention_maps(PoolSample(make_pool().images, 2), path) is None


def test_flat_attention_is_drawn(tmp_path: Path) -> None:
    sample = PoolSample(make_pool().images, 2, attention=torch.full((3, 4, 4), 0.25))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attention_maps(sample, tmp_path / "attention.png")


def test_at_most_so_many_images_spread_over_all() -> None:
    assert spread(3, 30) == [0, 1, 2]
    assert spread(100, 4) == [0, 25, 50, 75]


def test_curves_with_gaps_points_and_terms(tmp_path: Path) -> None:
    steps = list(range(200))
    values = [float("nan") if step % 7 == 0 else 1 / (step + 1) for step in steps]
    curves = Curves(steps, {"loss": values, "confidence": values, "relabel": values}, [10, 20])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = pixels(inversion_curves(curves, tmp_path / "inversion.png"))
        assert distillation_curves(Curves([0], {"loss": [1.0]}), tmp_path / "distillation.png")
    assert has_colour(image, COLOURS["student"])
    assert has_colour(image, COLOURS["teacher"])
    assert inversion_curves(None, tmp_path / "none.png") is None
    assert inversion_curves(Curves([], {"loss": []}), tmp_path / "none.png") is None


def test_figures_are_the_same_twice_and_leave_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    accuracy = make_data().accuracy
    one = accuracy_bars(accuracy, tmp_path / "one.png").read_bytes()
    assert one == accuracy_bars(accuracy, tmp_path / "two.png").read_bytes()
    assert dict(matplotlib.rcParams) == before
