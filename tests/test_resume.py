"""Runs that are stopped and gone on with, and runs on another run's uploads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flwr.serverapp.exception import AggregationError

from fedmitr_app.errors import ConfigError, RunFolderError
from fedmitr_app.methods import student
from fedmitr_app.run_folder import RunFolder
from fedmitr_app.strategies.records import UPLOAD_KEY
from fedmitr_app.utils.files import load_tensors, save_tensors
from tests.crashes import result_of
from tests.helpers.federation import Federation
from tests.helpers.resuming import RESUME, Stopped, fedmitr_module, stop_at

ROOT = Path(__file__).parents[1]


@pytest.fixture
def whole(tmp_path, no_processes):
    """What a run gives that nothing happens to."""
    federation = Federation(tmp_path / "whole")
    federation.run()
    return result_of(federation.folder)


def training_clients(federation):
    """Let the federation note who trains."""
    trained = []

    def note(number, message, reply):
        if reply.content[UPLOAD_KEY]["status"] == "ok":
            trained.append(number)
        return reply

    federation.spoil = note
    return trained


def test_killed_runs_give_the_same_result_to_the_last_bit():
    done = subprocess.run(
        [sys.executable, "-m", "tests.crashes", "--cycles", "5"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "5 runs completed" in done.stdout and "no result differs" in done.stdout


def test_clients_whose_uploads_are_there_do_not_train_again(federation, whole, monkeypatch):
    def lost(number, message, reply):
        if number == 2:
            raise Stopped
        return reply

    federation.spoil = lost
    with pytest.raises(AggregationError):
        federation.run(**RESUME, **{"server.min-clients": 3})
    assert not (federation.folder / "round.json").exists()
    assert federation.status()["state"] == "failed"
    assert "Only 2 usable upload(s)" in federation.status()["reason"]
    assert not (federation.folder / "global_model.safetensors").exists()
    trained = training_clients(federation)
    federation.run(**RESUME, **{"server.min-clients": 3})
    assert trained == [2]
    found = result_of(federation.folder)
    assert {name: found[name] == whole[name] for name in whole} == dict.fromkeys(whole, True)


@pytest.mark.parametrize(
    ("module", "name", "after"),
    [
        (fedmitr_module, "StudentTraining", 0),
        (fedmitr_module, "make_pool", 0),
        (student, "save_tensors", 0),
    ],
    ids=["after the inversion", "before the inversion", "at the first checkpoint"],
)
def test_what_was_done_is_not_done_again(federation, whole, monkeypatch, module, name, after):
    with monkeypatch.context() as patch:
        stop_at(patch, module, name, after)
        with pytest.raises(Stopped):
            federation.run()
    pool = {path: path.stat().st_mtime_ns for path in (federation.folder / "pool").glob("*")}
    trained = training_clients(federation)
    federation.run(**RESUME)
    assert not trained and result_of(federation.folder) == whole
    assert all(path.stat().st_mtime_ns == then for path, then in pool.items())


@pytest.mark.parametrize("kind", ["pool/pool-00000-00000.safetensors", "distillation.safetensors"])
@pytest.mark.parametrize("how", ["cut", "a bit", "gone"])
def test_damaged_files_are_noticed_and_made_again(
    federation, whole, monkeypatch, caplog, kind, how
):
    with monkeypatch.context() as patch:
        stop_at(patch, fedmitr_module.StudentTraining, "finish")
        with pytest.raises(Stopped):
            federation.run()
    file = federation.folder / kind
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-9] if how == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    federation.run(**RESUME)
    assert result_of(federation.folder) == whole
    assert how == "gone" or str(file) in caplog.text


def test_a_checkpoint_that_is_whole_and_none_is_not_gone_on_with(
    federation, whole, monkeypatch, caplog
):
    """Its digest is right: whoever can write a folder can work that out."""
    with monkeypatch.context() as patch:
        stop_at(patch, fedmitr_module.StudentTraining, "finish")
        with pytest.raises(Stopped):
            federation.run()
    file = federation.folder / "distillation.safetensors"
    found = load_tensors(file)
    save_tensors(file, {**found.tensors, "optimiser.0.exp_avg": torch.zeros(7)}, found.facts)
    (federation.folder / "evaluation.json").write_text('{"key": 1, "clients": [[]]}')
    federation.run(**RESUME)
    assert "is a checkpoint of another student. The distillation is begun anew." in caplog.text
    assert result_of(federation.folder) == whole


def test_a_run_that_is_killed_once_it_is_complete_stays_complete_and_is_cleared(
    federation, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_at(patch, RunFolder, "drop")
        with pytest.raises(Stopped):
            federation.run()
    assert (federation.folder / "distillation.safetensors").exists()
    assert federation.status()["state"] == "completed"
    trained, before = training_clients(federation), result_of(federation.folder)
    federation.run(**RESUME)
    assert federation.status()["state"] == "completed"
    assert not trained and result_of(federation.folder) == before
    assert not (federation.folder / "distillation.safetensors").exists()


def test_a_damaged_upload_is_rejected_and_the_run_goes_on(federation, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, fedmitr_module.StudentTraining, "finish")
        with pytest.raises(Stopped):
            federation.run()
    (weights,) = (federation.folder / "uploads").glob("client-001.*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    metrics = federation.run(**RESUME)
    assert metrics["uploads"]["accepted"] == 2 and metrics["uploads"]["rejected"] == 1
    # What its teacher made is no longer of use.
    assert len(list((federation.folder / "pool").glob("pool-*"))) == 2


def test_other_settings_are_refused_by_name_and_nothing_is_lost(federation, whole):
    federation.run()
    before = sorted(path.name for path in federation.folder.iterdir())
    changes = {"distillation.steps": 5, "seed": 1}
    words = r"distillation.steps = 5 \(was 4\), seed = 1 \(was 0\); set them back"
    with pytest.raises(ConfigError, match=words):
        federation.run(**RESUME, **changes)
    assert sorted(path.name for path in federation.folder.iterdir()) == before
    assert federation.status()["state"] == "completed"


def test_a_refused_resume_leaves_the_reason_in_place(federation):
    with pytest.raises(AggregationError):
        federation.run(**{"server.min-clients": 9, "server.wait-for-nodes": 0.1})
    before = federation.status()
    assert before["state"] == "failed" and "at least 9 are needed" in before["reason"]
    with pytest.raises(ConfigError, match="set them back"):
        federation.run(**RESUME, seed=1)
    assert federation.status() == before


def test_a_run_that_was_stopped_at_its_first_line_can_be_gone_on_with(federation):
    federation.folder.mkdir()
    (federation.folder / ".lock").touch()
    (federation.folder / ".status.json.x.tmp").mkdir()
    federation.run(**RESUME)
    assert federation.status()["state"] == "completed"


def test_going_on_with_a_complete_run_does_nothing(federation):
    federation.run()
    trained = training_clients(federation)
    before = {path: path.stat().st_mtime_ns for path in federation.folder.rglob("*.*")}
    federation.run(**RESUME, **{"server.timeout": 5.0})
    assert not trained
    after = {path: path.stat().st_mtime_ns for path in before if path.name != ".lock"}
    assert all(before[path] == then for path, then in after.items())


def test_resume_needs_a_folder_that_is_a_runs(federation):
    with pytest.raises(ConfigError, match="output.run-dir = '' is not allowed"):
        federation.run(**RESUME, **{"output.run-dir": ""})
    federation.folder.mkdir()
    (federation.folder / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="already holds other files"):
        federation.run(**RESUME)


def test_half_written_files_are_removed(federation, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, fedmitr_module.StudentTraining, "finish")
        with pytest.raises(Stopped):
            federation.run()
    half = federation.folder / "pool" / ".pool-00000-00009.safetensors.x.tmp"
    half.mkdir()
    (half / "pool-00000-00009.safetensors").write_bytes(b"half")
    federation.run(**RESUME)
    assert not half.exists()


def test_another_runs_uploads_are_fused_without_training(tmp_path, no_processes):
    first = Federation(tmp_path / "first")
    first.run()
    second = Federation(tmp_path / "second")
    trained = training_clients(second)
    metrics = second.run(**{"server.uploads-from": str(first.folder)})
    assert not trained and not second.grid.pushed
    assert result_of(second.folder) == result_of(first.folder)
    assert metrics["uploads"]["asked"] == 3


def test_excluded_clients_are_left_out(tmp_path, no_processes):
    first = Federation(tmp_path / "first")
    first.run()
    from_first = {"server.uploads-from": str(first.folder)}
    second = Federation(tmp_path / "second")
    second.run(**from_first, **{"server.exclude-clients": "client-000, client-002"})
    third = Federation(tmp_path / "third")
    third.run(**{"server.exclude-clients": "client-002,client-000"})
    for federation in (second, third):
        metrics = federation.metrics()
        assert list(metrics["accuracy"]["clients"]) == ["client-001"]
        assert metrics["uploads"]["excluded"] == 2
    models = [result_of(federation.folder) for federation in (second, third)]
    names = [name for name in models[0] if name.startswith(("global_model", "pool"))]
    assert len(names) > 10 and all(models[0][name] == models[1][name] for name in names)


def test_excluding_somebody_unknown(tmp_path, no_processes, caplog):
    first = Federation(tmp_path / "first")
    first.run(**{"server.exclude-clients": "hospital"})
    assert "server.exclude-clients names 'hospital', which sent no usable upload." in caplog.text
    second = Federation(tmp_path / "second")
    words = "server.exclude-clients = 'hospital' is not allowed: it must be some of 'client-000'"
    with pytest.raises(ConfigError, match=words):
        second.run(
            **{
                "server.uploads-from": str(first.folder),
                "server.exclude-clients": "hospital",
            }
        )


def test_uploads_from_a_folder_without_a_round(federation, tmp_path):
    with pytest.raises(ConfigError, match="server.uploads-from = .*whose round is over"):
        federation.run(**{"server.uploads-from": str(tmp_path)})
    assert not federation.grid.pushed


def test_uploads_of_another_model_are_refused(tmp_path, no_processes):
    first = Federation(tmp_path / "first")
    first.run()
    changes = {"model.depth": 2}, {"data.mean": "0.25"}, {"model.width": 48, "model.heads": 3}
    for number, change in enumerate(changes):
        second = Federation(tmp_path / f"second-{number}")
        with pytest.raises(ConfigError, match="'client-000' are of another model than this run's"):
            second.run(**{"server.uploads-from": str(first.folder), **change})
        assert second.status()["state"] == "failed"
