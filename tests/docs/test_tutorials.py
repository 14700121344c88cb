"""The tutorials' commands and code, done in their order, at toy size."""

import difflib
import inspect
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from fedmitr_app.config import parse_config
from fedmitr_app.strategies.run_config import read_run_config
from tests.helpers.documents import DOCS, blocks, options
from tests.helpers.installed import custom_method
from tests.helpers.plug_in import EXAMPLE, modules_of, serve
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
    shown = [line for block in blocks(page, "output") for line in block.text.splitlines()]
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


def draw_photos(folder):
    """Pictures that tell the classes apart by how bright they are, some of them kept aside."""
    draws = np.random.default_rng(0)
    (folder / "new").mkdir()
    for number, name in enumerate(("dog", "guitar", "house"), start=1):
        (folder / "photos" / name).mkdir(parents=True)
        for picture in range(41):
            pixels = draws.integers(0, 60, (12, 16, 3)) + 80 * number - 80
            path = folder / "photos" / name / f"{picture}.jpg" if picture else None
            Image.fromarray(pixels.astype(np.uint8)).save(path or folder / "new" / f"{number}.jpg")


def test_own_photos(folder, capfd, caplog):
    draw_photos(folder)
    weights = folder / "weights.safetensors"
    save_file(timm.create_model("deit_tiny_patch16_224").state_dict(), weights)
    page = TUTORIALS / "own-photos.md"
    small = {"data.image-size": 32, "model.weights": str(weights)}
    reader = Reader({**TOY, **small, "model.precision": "float32", "model.matmul": "torch"})
    with caplog.at_level("INFO"):
        reader.read(page)
    out, err = capfd.readouterr()
    said(page, f"{out}\n{err}\n" + "\n".join(record.getMessage() for record in caplog.records))
    (run,) = reader.runs
    assert run.folder == folder / "fedmitr-runs" / "photos" and run.clients == 3
    assert reader.names["predictor"].class_names == ("dog", "guitar", "house")
    assert reader.names["prediction"].label in {"dog", "guitar", "house"}
    # What was checked is what is run.
    check, ran = (
        options(words, "--run-config")[0].split()
        for words in reader.typed
        if words[:2] in (["fedmitr", "check"], ["flwr", "run"])
    )
    assert set(ran) - set(check) == {word for word in ran if word.startswith("output.run-dir=")}
    for setting in re.findall(r"`([^`]+=[^`]+)`", page.read_text(encoding="utf-8")):
        if "client-resources" not in setting:
            parse_config(read_run_config([setting], folder).values)


class PlugInReader(Reader):
    """In the example's folder ``flwr run`` runs the example, with the server named last."""

    accuracies: list[list[float]] = []

    def _do(self, page, block):
        if block.language == "toml" and block.text.startswith("serverapp"):
            self.server = tomllib.loads(block.text)["serverapp"]
        super()._do(page, block)

    def _federation(self, words):
        with modules_of(Path()) as modules:
            package, _, name = self.server.removesuffix(":app").partition(".")
            assert package == "plugin_example"
            self.accuracies = [*self.accuracies, serve(modules, name)]
            self.task = inspect.getsource(modules("task"))


def test_own_flower_project(tmp_path, monkeypatch, no_processes, capfd, caplog):
    page = TUTORIALS / "own-flower-project.md"
    shutil.copytree(EXAMPLE, tmp_path / "plug-in")
    monkeypatch.chdir(tmp_path / "plug-in")
    reader = PlugInReader()
    with caplog.at_level("INFO"):
        reader.read(page)
    assert len(reader.accuracies) == 3 and all(len(pair) == 2 for pair in reader.accuracies)
    assert "set_class_means(model.head" in reader.task
    records = "\n".join(record.getMessage() for record in caplog.records)
    said(page, records.replace("\t", ""))
    # The page's one line is all in which the two servers differ.
    before, after = (
        (EXAMPLE / "plugin_example" / name).read_text().splitlines()
        for name in ("server_app.py", "server_app_fedmitr.py")
    )
    changed = [line for line in difflib.ndiff(before, after) if line.startswith(("-", "+"))]
    (shown,) = [block.text for block in blocks(page, "diff") if not block.caption]
    assert [line[0] + line[1:].strip() for line in shown.splitlines()] == [
        line[0] + line[1:].strip() for line in changed
    ]
    for block in blocks(page, "{literalinclude}"):
        source = (page.parent / block.argument).resolve()
        (name,) = re.findall(r":pyobject: (\w+)", block.text)
        assert f"def {name}(" in source.read_text(encoding="utf-8")
