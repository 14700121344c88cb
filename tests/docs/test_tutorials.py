"""The tutorials' commands and code, done in their order, at toy size."""

import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.documents import DOCS, blocks
from tests.helpers.installed import custom_method
from tests.helpers.reader import ROOT, TOY, Reader

TUTORIALS = DOCS / "tutorials"


@pytest.fixture
def folder(tmp_path, monkeypatch, no_processes):
    """Where a reader types: beside the project's own file, which holds the defaults."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(line: str) -> str:
    """Leave out what differs from run to run: numbers."""
    return re.sub(r"[-+]?\d[\d.]*", "#", " ".join(line.split()))


def said(page: Path, told: str) -> None:
    """Every line that the page shows of a log is one that a run writes, but for its numbers."""
    lines = {words(line) for line in told.splitlines()}
    shown = [line for block in blocks(page, "text") for line in block.text.splitlines()]
    assert shown
    for line in shown:
        assert words(line) in lines, line


def test_first_run(folder, capfd, caplog):
    page = TUTORIALS / "first-run.md"
    reader = Reader()
    with caplog.at_level("INFO"):
        reader.read(page)
    first, longer = reader.runs
    assert first.clients == 5 and longer.settings()
    out, err = capfd.readouterr()
    said(page, f"{out}\n{err}\n" + "\n".join(record.getMessage() for record in caplog.records))
    for row in re.findall(r"^\| (`.*?) \|", page.read_text(encoding="utf-8"), re.M):
        for name in re.findall(r"`([^`]+)`", row):
            assert (first.folder / name).exists(), name
    assert (folder / "comparison.html").exists()


def test_comparing_methods(folder, capsys):
    page = TUTORIALS / "comparing-methods.md"
    reader = Reader({**TOY, "data.max-train": 80, "data.max-test": 30})
    with custom_method(folder / "site"):
        reader.read(page)
    out = capsys.readouterr().out
    said(page, out)
    table = (folder / "results" / "mine" / "table.md").read_text(encoding="utf-8")
    for name in ("FedMITR", "best of two"):
        assert f"| {name} |" in table
    assert "failed" not in table and "over the seeds 0, 1, 2, 3, 4, 5." in table
    shown = page.read_text(encoding="utf-8")
    for header in re.findall(r"^\| (method .*) \|$", shown, re.M):
        assert header.split(" | ") == [c for c in _header(table) if c in header.split(" | ")]
    assert (folder / "comparison.html").exists()


def _header(table: str) -> list[str]:
    return (
        next(line for line in table.splitlines() if line.startswith("| method"))
        .strip("| ")
        .split(" | ")
    )
