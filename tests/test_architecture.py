"""The page of the architecture: its method works, and it names files and folders there are."""

import re
from pathlib import Path

import pytest
import torch

import fedmitr_app as fedmitr
from fedmitr_app.methods import METHODS
from tests.helpers.library import SMALL, states, vit

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")


@pytest.fixture
def forgotten():
    known = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(known)


@pytest.mark.usefixtures("forgotten")
def test_the_pages_method_is_fedmitr_and_can_be_used_by_name(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(re.sub(r"(?m)^   ", "", code), {"__name__": "page"})
    found = [
        fedmitr.fuse(states(), vit(), method=name, changes=SMALL, run_dir=tmp_path / name)
        for name in ("my-method", "fedmitr")
    ]
    ours, theirs = (each.state_dict for each in found)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    fedmitr.load(tmp_path / "my-method", "ensemble", device="cpu")


def test_the_tree_is_the_packages():
    tree = PAGE.partition("```\nfedmitr_app/")[2].partition("```")[0]
    named = {
        line.split()[0].rstrip("/") for line in tree.splitlines() if re.match(r" +[a-z_]", line)
    }
    package = ROOT / "fedmitr_app"
    there = {path.name for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    there -= {"__pycache__", "__main__.py"}
    assert there <= named, sorted(there - named)
    lines = [line.split()[0] for line in tree.splitlines() if re.match(r"  [a-z_]", line)]
    assert all((package / name).exists() for name in lines), lines


def test_rooms_use_only_those_before_them():
    order = re.search(r"each uses only those before it: (.*?), then the rest", PAGE, re.DOTALL)[1]
    rooms = [name for name in re.findall(r"`([a-z_]+)`", order)]
    assert rooms[0] == "utils" and len(rooms) == 12
    together = {"training", "merging"}
    for number, room in enumerate(rooms):
        for path in (ROOT / "fedmitr_app" / room).rglob("*.py"):
            used = set(re.findall(r"(?m)^ *from fedmitr_app\.([a-z_]+)", path.read_text()))
            later = {*rooms[number + 1 :]} & used
            other = used - {*rooms, "errors", "evaluation"}
            assert not later - (together if room in together else set()), (path, later)
            assert not other, (path, other)
