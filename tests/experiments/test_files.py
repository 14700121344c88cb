"""The experiment files that come with the project say what can be run."""

from pathlib import Path

import pytest

from fedmitr_app.experiments.grid import read_grid

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_row_is_possible_and_none_is_another_one_again(path):
    grid = read_grid(path)
    seeds = {cell.federation.seed for cell in grid.cells}
    choosing = path.stem.startswith("ablation")
    for cell in grid.cells:
        # What a default is chosen by never looks at the tables' seeds and images.
        assert (cell.config.data.test_split == "validation") == choosing
    assert not choosing or min(seeds) >= 100
    first = [cell for cell in grid.cells if cell.federation == grid.cells[0].federation]
    rows = {(cell.row.method, cell.attack, cell.attackers, cell.config) for cell in first}
    assert len(rows) == len(first)


def test_the_files_are_all_described():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in FOLDER.glob("*.toml"):
        assert f"`{path.name}`" in page, path.name
