"""A small grid from nothing: uploads once, cells once, tables and figures that tell it."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pandas as pd
import pytest
import torch

from fedmitr_app.cli import main
from fedmitr_app.errors import TrainingError
from fedmitr_app.experiments import cell as cells
from fedmitr_app.experiments import run
from fedmitr_app.experiments.federate import train_federation
from fedmitr_app.experiments.grid import read_grid
from fedmitr_app.experiments.run import run_grid

EXPERIMENT = """
title = "tiny"
[axes]
seeds = [0, 1]
clients = [2]
alpha = [0.5, 2.0]
[settings]
preset = "quick"
data.max-train = 80
data.max-test = 40
client.epochs = 1
model.depth = 1
inversion.images = 8
inversion.iterations = 4
teacher.probe-images = 8
distillation.steps = 3
distillation.batch-size = 4
[rows.fedmitr]
[rows.real-images]
[rows.best-client]
[rows."label-aware ensemble"]
method = "ensemble"
settings = { teacher.combine = "label-aware", client.share-label-counts = true }
[rows.fedcgs]
settings = { client.share-moments = true }
"""
CPU = torch.device("cpu")


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(EXPERIMENT)
    return path


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def quietly(grid, results, **options):
    return run_grid(grid, results, device=CPU, log=lambda line: None, **options)


def test_the_command_leaves_tables_and_figures(experiment, tmp_path, capsys, caplog):
    results = tmp_path / "results"
    assert main(["experiments", str(experiment), str(results), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "4 federation(s) to train, 20 of 20 cells to run" in shown and "20/20 " in shown
    frame = pd.read_csv(results / "tiny" / "results.csv", float_precision="round_trip")
    assert len(frame) == 20 and (frame["status"] == "ok").all()
    assert frame["accuracy"].between(0, 1).all() and (frame["test_images"] == 40).all()
    ours = frame[frame["row"] == "fedmitr"]
    assert (ours["images"] == 8).all() and (ours["steps"] == 3).all()
    assert (ours["seconds"] > 0).all()
    # An ensemble is its own teacher.
    ensemble = frame[frame["row"] == "label-aware ensemble"]
    assert (ensemble["accuracy"] == ensemble["teacher"]).all()
    best = frame[frame["row"] == "best-client"]
    assert best["best_client"].notna().all() and best["clients_accuracy"].str.contains(" / ").all()
    random = {"class moments of a random θ₀"}
    assert set(frame.loc[frame["row"] == "fedcgs", "beside_weights"]) == random
    between = pd.read_csv(results / "tiny" / "differences.csv")
    assert set(between["against"]) == {"fedmitr"} and len(between) == 2 * 4
    page = (results / "tiny" / "table.md").read_text()
    for part in (
        "**2 clients, dirichlet, α = 0.5**",
        "| fedmitr |",
        "seeds 0, 1",
        "Accuracy on test images",
        "Each client alone, %: ",
        "| class moments of a random θ₀ | 2 |",
        "**2 clients, dirichlet, α = 2: more than fedmitr**",
        "can't be told of 2 seeds | 2 |",
        "| label counts | 2 |",
        "Each cell by ",
    ):
        assert part in page
    mean = 100 * ours.loc[ours["alpha"] == 0.5, "accuracy"].mean()
    assert f"| fedmitr | {mean:.1f} ± " in page
    tex = (results / "tiny" / "table.tex").read_text()
    assert tex.count(r"\begin{tabular}") == 4 and r"$\pm$" in tex and "%, " not in tex
    drawn = {path.name for path in (results / "tiny").glob("*.png")}
    assert drawn == {"bars-1.png", "bars-2.png", "compute-1.png", "compute-2.png", "alpha-1.png"}
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (results / "tiny").glob("*.png"))

    # Again: nothing is trained or fused a second time.
    before = stamps(results / "uploads") | stamps(results / "cells")
    assert main(["experiments", str(experiment), str(results), "--device", "cpu"]) == 0
    assert "0 federation(s) to train, 0 of 20 cells to run" in capsys.readouterr().out
    assert stamps(results / "uploads") | stamps(results / "cells") == before
    assert (results / "tiny" / "results.csv").read_text() == frame.to_csv(index=False)

    # The clients' answers to the test images are kept, and of use only while they are sound.
    kept = sorted((results / "answers").iterdir())
    assert len(kept) == 4
    kept[0].write_bytes(kept[0].read_bytes()[:-9])
    for path in (results / "cells").glob("ensemble-seed*.json"):
        path.unlink()
    assert main(["experiments", str(experiment), str(results), "--device", "cpu"]) == 0
    assert "The clients are asked again" in caplog.text
    capsys.readouterr()
    again = pd.read_csv(results / "tiny" / "results.csv")
    assert again["accuracy"].tolist() == frame["accuracy"].tolist()


def test_attacks_are_lines_of_one_table(experiment, tmp_path):
    axes = 'attack = ["none", "constant-class"]\nattackers = [1, 2]\nclients = [2]'
    text = EXPERIMENT[: EXPERIMENT.index("[rows.fedmitr]")] + "[rows.ensemble]\n[rows.fedavg]"
    for old, new in (("[0, 1]", "[0]"), ("alpha = [0.5, 2.0]", ""), ("epochs = 1", "epochs = 15")):
        text = text.replace(old, new)
    experiment.write_text(text.replace("clients = [2]", axes))
    results = tmp_path / "results"
    assert main(["experiments", str(experiment), str(results), "--device", "cpu"]) == 1
    frame = pd.read_csv(results / "tiny" / "results.csv", float_precision="round_trip")
    known = frame.set_index(["row", "attack", "attackers"])["accuracy"]
    assert known["ensemble", "constant-class", 1] != known["ensemble", "none", 0]
    page = (results / "tiny" / "table.md").read_text()
    assert "| attack | ensemble | fedavg |" in page
    lines = {"no attack": ("none", 0), "constant-class by 1": ("constant-class", 1)}
    for words, where in lines.items():
        figures = [f"{100 * known[row, *where]:.1f}" for row in ("ensemble", "fedavg")]
        assert f"| {words} | {' | '.join(figures)} |" in page
    assert "| constant-class by 2 | failed: attackers = 2: with 2 uploads at least one" in page
    assert [path.name for path in (results / "tiny").glob("*.png")] == ["attacks-1.png"]


def test_results_outlive_their_uploads_but_not_other_ones(experiment, tmp_path):
    small = EXPERIMENT.replace("seeds = [0, 1]", "seeds = [0]").replace("[0.5, 2.0]", "[0.5]")
    experiment.write_text(small.partition("[rows.real-images]")[0])
    grid, results = read_grid(experiment), tmp_path / "results"
    (first,) = quietly(grid, results)
    (folder,) = (results / "uploads").iterdir()
    shutil.move(folder, tmp_path / "elsewhere")
    assert quietly(grid, results, train=False) == [first]  # a table can be drawn again
    # The same folder with other weights in it: what was made of the old ones says nothing.
    shutil.copytree(tmp_path / "elsewhere", folder)
    next(folder.glob("client-001.*.safetensors")).unlink()
    next(folder.glob("client-001.*.json")).unlink()
    (second,) = quietly(grid, results, train=False)
    assert second["uploads"] != first["uploads"] and second["loss"] != first["loss"]
    # Nor does what another kind of device took.
    (path,) = (results / "cells").iterdir()
    path.write_text(path.read_text().replace('"kind_of_device": "cpu"', '"kind_of_device": "cuda"'))
    assert quietly(grid, results)[0]["kind_of_device"] == "cpu"


def test_a_federation_that_cannot_be_trained_costs_its_own_cells_alone(
    experiment, tmp_path, monkeypatch
):
    def train(federation, config, folder, device):
        if federation.alpha == 0.5:
            raise TrainingError("client.learning-rate = 9 made it diverge: lower it.")
        train_federation(federation, config, folder, device)

    monkeypatch.setattr(run, "train_federation", train)
    said = []
    grid = read_grid(experiment, {"data.max-train": 60})
    found = run_grid(grid, tmp_path / "results", device=CPU, log=said.append)
    status = {(one["alpha"], one["status"]) for one in found}
    reason = "failed: client.learning-rate = 9 made it diverge: lower it."
    assert status == {(0.5, reason), (2.0, "ok")}
    assert sum(line.endswith(f": {reason}") or f": {reason}, " in line for line in said) == 2


def deadly(cell, *arguments):
    """Stand for ``run_cell`` in a worker: one method's process is killed."""
    if cell.row.method == "best-client":
        os.kill(os.getpid(), signal.SIGKILL)
    return cells.run_cell(cell, *arguments)


def test_a_worker_that_is_killed_is_said_and_the_rest_can_go_on(
    experiment, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run, "run_cell", deadly)
    experiment.write_text(EXPERIMENT.replace("[0, 1]", "[0]").replace("[0.5, 2.0]", "[0.5]"))
    arguments = [str(experiment), str(tmp_path / "results"), "--device", "cpu"]
    assert main(["experiments", *arguments, "--workers", "2", "--set", "data.max-train=60"]) == 1
    page = (tmp_path / "results" / "tiny" / "table.md").read_text()
    assert "| best-client | failed: a worker process was ended from outside" in page
    monkeypatch.undo()
    assert main(["experiments", *arguments, "--set", "data.max-train=60"]) == 0
    assert "failed" not in (tmp_path / "results" / "tiny" / "table.md").read_text()


def test_a_damaged_result_is_made_again(experiment, tmp_path):
    grid = read_grid(experiment, {"data.max-train": 60})
    first = quietly(grid, tmp_path / "results")
    (damaged, other, *_) = (tmp_path / "results" / "cells").iterdir()
    damaged.write_text(damaged.read_text()[:20])
    other.write_text("[]")
    said = []
    again = run_grid(grid, tmp_path / "results", device=CPU, log=said.append)
    assert "0 federation(s) to train, 2 of 20 cells" in said[0]
    assert [one["accuracy"] for one in first] == [one["accuracy"] for one in again]


def test_a_stopped_grid_goes_on_and_gives_the_same(experiment, tmp_path):
    grid = read_grid(experiment, {"data.max-train": 60})
    whole = quietly(grid, tmp_path / "whole")
    said = []

    def stop(line):
        said.append(line)
        if line.startswith("5/20 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, tmp_path / "parts", device=CPU, log=stop)
    rest = run_grid(grid, tmp_path / "parts", device=CPU, log=said.append)
    assert "0 federation(s) to train, 15 of 20 cells to run" in said[-16]
    for one, two in zip(whole, rest, strict=True):
        assert {k: v for k, v in one.items() if "seconds" not in k} == {
            k: v for k, v in two.items() if "seconds" not in k
        }


def test_workers_give_what_one_process_gives(experiment, tmp_path):
    experiment.write_text(EXPERIMENT.replace("[0.5, 2.0]", "[0.5]"))
    grid = read_grid(experiment, {"data.max-train": 60})
    one = quietly(grid, tmp_path / "one")
    two = quietly(grid, tmp_path / "two", workers=2)
    for first, second in zip(one, two, strict=True):
        assert first["accuracy"] == pytest.approx(second["accuracy"], abs=0.03)
        assert (first["row"], first["seed"], first["steps"]) == (
            second["row"],
            second["seed"],
            second["steps"],
        )


def replaced(name, run):
    """Return a method that does something else."""
    return replace(cells.METHODS[name], run=run)


def test_what_cannot_run_says_why_in_the_table(experiment, tmp_path, monkeypatch, capsys):
    def fail(task):
        raise TrainingError("distillation.learning-rate = 9 made it diverge: lower it.")

    monkeypatch.setitem(cells.METHODS, "best-client", replaced("best-client", fail))

    def stumble(task):
        raise ZeroDivisionError("a bug")

    monkeypatch.setitem(cells.METHODS, "fedmitr", replaced("fedmitr", stumble))
    monkeypatch.setattr(cells, "_training_images", lambda config, spec: None)
    text = EXPERIMENT.replace(", client.share-label-counts = true", "")
    experiment.write_text(text.replace("client.share-moments = true", ""))
    results = tmp_path / "results"
    assert main(["experiments", str(experiment), str(results), "--device", "cpu"]) == 1
    page = (results / "tiny" / "table.md").read_text()
    assert "| real-images | not run: it needs the training images" in page
    assert "| best-client | failed: distillation.learning-rate = 9" in page
    assert "| fedmitr | failed: ZeroDivisionError: a bug" in page
    # Never filled in by the combination that a round would fall back to.
    assert "| label-aware ensemble | not run: its clients share no label counts" in page
    assert "| fedcgs | not run: client-000, client-001 uploaded no class moments" in page
    names = [json.loads(path.read_text())["row"] for path in (results / "cells").iterdir()]
    # What can't run here won't run tomorrow; what failed is tried again.
    assert "real-images" in names and "best-client" not in names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--no-training"], "uploads/dirichlet-alpha0.5-clients2-seed0-"),
        (["--workers", "0"], "--workers = 0 is not allowed"),
        (["--device", "cuda:99"], "--device = 'cuda:99' is not allowed"),
        (["--set", "seed"], "--set 'seed' must be KEY=VALUE"),
        (["--set", "client.typo=1"], "client.typo is not a setting"),
        (["--set", "client.epochs=2", "--set", "seed=1"], "seed belongs to the axes"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(
    experiment, tmp_path, capsys, arguments, words
):
    assert main(["experiments", str(experiment), str(tmp_path / "results"), *arguments]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
