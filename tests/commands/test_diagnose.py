"""The command on a run's folder, and its sentences for what a user can get wrong."""

import json
import shutil

import pytest

from fedmitr_app.cli import main

FEW = ["--images", "4", "--batches", "2", "--device", "cpu"]


@pytest.fixture
def run(federation):
    federation.run(**{"server.control": False})
    return federation.folder


def test_a_finished_run_is_diagnosed_alone_and_against_dense(run, capsys):
    before = {path.name for path in run.rglob("*")}
    pool = {path: path.read_bytes() for path in (run / "pool").iterdir()}
    assert main(["diagnose", str(run), *FEW]) == 0
    alone = json.loads((run / "diagnosis.json").read_text())
    assert list(alone["students"]) == ["run"] and len(alone["claims"]) == 9
    assert alone["students"]["run"]["gap"]["test_accuracy"] == pytest.approx(
        json.loads((run / "metrics.json").read_text())["accuracy"]["student"]
    )
    told = capsys.readouterr().out
    assert all(claim["sentence"] in told for claim in alone["claims"])
    assert main(["diagnose", str(run), *FEW, "--dense"]) == 0
    both = json.loads((run / "diagnosis.json").read_text())
    # What needs no second student is the same once more.
    assert all(both[part] == alone[part] for part in ("gradients", "variance"))
    assert both["students"]["run"] == alone["students"]["run"]
    assert len(both["claims"]) == 13 and "of dense inversion" in capsys.readouterr().out
    assert json.loads((run / "metrics.json").read_text())["diagnosis"] == both
    assert (run / "report.html").read_text().count("What the theory claims") == 1
    # The run's own images stay as they are.
    assert pool == {path: path.read_bytes() for path in (run / "pool").iterdir()}
    assert {path.name for path in run.rglob("*")} - before == {"diagnosis.json"}


def failing(capsys, *arguments):
    """Fail with one sentence and return it."""
    assert main(["diagnose", *map(str, arguments), *FEW[4:]]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and error.endswith((".\n", "?\n"))
    return error


def changed(run, tmp_path, name, text):
    """A copy of the run with another file."""
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    if text is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(text)
    return copy


def test_every_mistake_is_one_sentence(run, tmp_path, capsys):
    def told(name, text):
        return failing(capsys, changed(run, tmp_path, name, text))

    assert "is not a folder" in failing(capsys, tmp_path / "nowhere")
    assert "--batches = 1 is not allowed" in failing(capsys, run, "--batches", 1)
    assert "config.json is missing, damaged" in told("config.json", None)
    assert "no table of names and values" in told("config.json", "[]")
    assert "not a table of settings" in told("config.json", '{"seed": null}')
    config = json.loads((run / "config.json").read_text())
    for key, value, expected in (
        ("inversion.image", 3, "inversion.image is not a setting"),
        ("seed", -1, "seed = -1 is not allowed"),
        ("server.method", "fedavg", "holds no pool of synthetic images"),
        ("model.width", 48, "uploads is missing, damaged, or of another run"),
        ("data.source", "parquet", "data.path"),
    ):
        assert expected in told("config.json", json.dumps({**config, key: value})), key
    assert "global_model.json is missing" in told("global_model.json", None)
    assert "global_model.safetensors is missing" in told("global_model.safetensors", "damaged")
    assert "pool is missing, damaged" in told("pool/pool-00000-00000.safetensors", "damaged")
    client = next((run / "uploads").glob("*.safetensors")).name
    assert f"{client} cannot be read back" in told(f"uploads/{client}", "damaged")
    empty = changed(run, tmp_path, "config.json", json.dumps(config))
    shutil.rmtree(empty / "uploads")
    assert "holds no uploads" in failing(capsys, empty)
    shutil.rmtree(empty / "pool")
    assert "holds no pool" in failing(capsys, empty)
    assert not (empty / "pool").exists()
