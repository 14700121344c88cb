"""The tutorials' commands and code, done in their order, at toy size."""

import difflib
import inspect
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
import timm
from nbclient import NotebookClient
from PIL import Image
from safetensors.torch import save_file

from fedmitr_app.config import given_settings, parse_config
from fedmitr_app.strategies.run_config import read_run_config
from tests.helpers.deployment import Deployment
from tests.helpers.documents import DOCS, blocks, inline_code, options
from tests.helpers.federation import Federation
from tests.helpers.installed import custom_method
from tests.helpers.plug_in import EXAMPLE, modules_of, serve
from tests.helpers.reader import TOY, Reader
from tests.helpers.typed import ROOT
from tests.test_deployment import BUDGET

TUTORIALS = DOCS / "tutorials"
PAGES = sorted(page for page in TUTORIALS.iterdir() if page.stem != "index")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\]\(([^)#:]+)\)", text)
    named += re.findall(r"^```\{(?:image|literalinclude)\} (\S+)", text, re.M)
    assert named
    for name in named:
        assert (page.parent / name).is_file(), name


@pytest.fixture
def folder(tmp_path, monkeypatch, no_processes):
    """Where a reader types: beside the project's own file, which holds the defaults."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(line: str) -> str:
    """Leave out what differs from run to run: numbers, and names made of weights."""
    line = re.sub(r"weights-[0-9a-f]{12}", "weights-#", " ".join(line.split()))
    return re.sub(r"[-+]?\d[\d.]*", "#", line)


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
    small = {"data.max-train": 80, "data.max-test": 30, "generator.turns": 2, "generator.steps": 2}
    reader = Reader({**TOY, **small})
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


def draw_classes(folder, names, pictures):
    """Draw small pictures in a folder for each class, which tell it by how bright they are."""
    draws = np.random.default_rng(0)
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for picture in range(1, pictures + 1):
            pixels = draws.integers(0, 60, (12, 16, 3)) + 80 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{picture}.jpg")


def test_own_photos(folder, capfd, caplog):
    draw_classes(folder / "photos", ("dog", "guitar", "house"), 40)
    (folder / "new").mkdir()
    for number, name in enumerate(("dog", "guitar", "house"), start=1):
        shutil.copy(folder / "photos" / name / "1.jpg", folder / "new" / f"{number}.jpg")
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
    for given in inline_code(page):
        if "=" in given and "client-resources" not in given:
            asked = read_run_config(["preset='photos' data.path='photos'", given], folder)
            parse_config(given_settings(asked.values, asked.given))


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


@pytest.mark.slow
def test_library(tmp_path):
    """The notebook, from its first cell but the installation to its last; it ends as it stands."""
    page = TUTORIALS / "library.ipynb"
    kept = nbformat.read(page, as_version=4)
    here = {"metadata": {"path": str(tmp_path)}}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = NotebookClient(
        nbformat.read(page, as_version=4),
        timeout=300,
        skip_cells_with_tag="install",
        resources=here,
        kernel_name="python3",
    )
    done = run.execute(env=env)
    told = "\n".join(map(printed, done.cells))
    shown = [list(map(words, printed(cell).splitlines())) for cell in kept.cells]
    again = [list(map(words, printed(cell).splitlines())) for cell in done.cells]
    assert [sorted(lines) for lines in shown] == [sorted(lines) for lines in again]
    assert path_free(kept)
    found = {
        name.strip(): float(share)
        for name, share in re.findall(r"^([\w ]+?) +([\d.]+) %$", told, re.M)
    }
    best = max(share for name, share in found.items() if name.startswith("client"))
    assert found["FedAvg"] < best < found["student"] < found["teacher"]
    assert any("image/png" in out.get("data", {}) for cell in done.cells for out in outputs(cell))


def outputs(cell):
    return cell.get("outputs", [])


def printed(cell):
    """What a cell printed."""
    return "".join(out.text for out in outputs(cell) if out.get("name") == "stdout")


def path_free(notebook):
    """Whether no output is an error or names a folder of the machine that made it."""
    return not any(
        "/" in out.get("text", "") or out.output_type == "error" or out.get("name") == "stderr"
        for cell in notebook.cells
        for out in outputs(cell)
    )


HOSPITALS = ("hospital-a", "hospital-b")


class DeploymentReader(Reader):
    """Makes the certificates and keys, and starts a node's script, with what it would start shown.

    A run is done by the real apps on a fake grid, each node with images of its own.
    """

    def _type(self, words):
        match words:
            case ["flwr", *rest]:
                words = ["flwr", *("1" if word == "RUN_ID" else word for word in rest)]
                super()._type(words)
            case ["deploy/certificates.sh" | "ssh-keygen", *_]:
                subprocess.run(words, check=True, timeout=60)
            case [setting, "deploy/server.sh"]:
                # What the deployment's test starts, with the same setting.
                name, _, folder = setting.partition("=")
                assert f'"{name}"' in inspect.getsource(Deployment.start_server)
                assert {"ca.crt", "server.crt", "server.key"} == set(os.listdir(folder))
            case ["set", _] | [".", "./node.env"]:
                pass
            case ["deploy/supernode.sh"]:
                self.started = self._start_node()
            case _:
                super()._type(words)

    def _start_node(self):
        shutil.copy("certificates/ca.crt", ".")
        env = Path("node.env").read_text().replace("/srv/images", os.path.abspath("images-0"))
        fake = Path("bin/flower-supernode")
        fake.parent.mkdir()
        fake.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
        fake.chmod(0o755)
        done = subprocess.run(
            ["bash", "-euc", f"set -a\n{env}\nset +a\ndeploy/supernode.sh"],
            env={**os.environ, "PATH": f"{fake.parent.absolute()}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def _federation(self, words):
        settings = read_run_config(options(words, "--run-config"), Path(words[2]))
        given = given_settings(settings.values, settings.given)
        parse_config(given)
        self.given = [*getattr(self, "given", []), given]
        if given.get("output.resume"):
            return
        node = {"data-source": "image-folder"}
        run = Federation(
            Path(given["output.run-dir"]),
            clients=len(HOSPITALS),
            task_type="flwr-serverapp",
            sizes={},
            node=lambda number: {
                **node,
                "client-key": HOSPITALS[number],
                "data-path": os.path.abspath(f"images-{number}"),
            },
        )
        run.run(**{**given, **self.toy})
        self.runs.append(run)


def test_three_machines(folder, caplog):
    page = TUTORIALS / "three-machines.md"
    for number in range(2):
        draw_classes(folder / f"images-{number}", ("benign", "malignant"), 10)
    (folder / "deploy").symlink_to(ROOT / "deploy")
    save_file(timm.create_model("deit_tiny_patch16_224").state_dict(), "weights.safetensors")
    small = {"data.image-size": 32, "model.weights": str(folder / "weights.safetensors")}
    reader = DeploymentReader({**TOY, **small, "model.precision": "float32"})
    with caplog.at_level("INFO"):
        reader.read(page)
    said(page, "\n".join(record.getMessage() for record in caplog.records))
    (run,) = reader.runs
    assert run.metrics()["uploads"]["accepted"] == 2
    assert "accuracy-on-hold-out" in run.metrics()["federated_evaluation"]
    # Going on is the same command, with one more setting.
    first, again = reader.given
    assert again == {**first, "output.resume": True}
    # The deployment's own test runs these settings, with sizes of its own, on real processes.
    asked = read_run_config([BUDGET], folder)
    assert {key for key in first if key.startswith(("server.", "client."))} <= {
        *asked.given,
        "server.timeout",
    }
    # A node is started with its key, its name and its images, as there.
    config = reader.started[reader.started.index("--node-config") + 1]
    assert 'client-key="hospital-a"' in config and "images-0" in config
    assert "--auth-supernode-private-key" in reader.started
    told = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    ours, theirs = (
        next(block for block in found if "[superlink.ours]" in block)
        for found in (
            [block.text for block in blocks(page, "toml")],
            [block.text for block in blocks(ROOT / "deploy" / "README.md", "toml")],
        )
    )
    assert tomllib.loads(ours)["superlink"]["ours"].keys() == (
        tomllib.loads(theirs)["superlink"]["ours"].keys()
    )
    for sentence in ("Connection attempt failed, retrying", "Failed to activate SuperNode"):
        assert sentence in " ".join(told.split()) and sentence in inline_code(page)
