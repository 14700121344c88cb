"""What ``status.json`` says of a run that was stopped, killed, or is still at work."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from flwr.supercore import telemetry
from flwr.supercore.exit import register_signal_handlers

from fedmitr_app import run
from fedmitr_app.diagnostics.finished import read_run
from fedmitr_app.errors import ConfigError, RunFolderError
from fedmitr_app.run_folder import RunFolder
from fedmitr_app.run_folder.status import settle_status
from fedmitr_app.strategies.flower_run import FlowerRun
from fedmitr_app.uploads import RoundFolder
from tests.helpers.federation import Federation

RUN_ID = 2**63 + 7


def status_in(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


def begin_run(folder: Path) -> None:
    """Begin the server's part as Flower would, and do nothing in it but wait."""
    run.prepare = lambda *_: None
    run._work_in = lambda *_: time.sleep(60)
    grid = SimpleNamespace(run=SimpleNamespace(run_id=RUN_ID))
    run.run(FlowerRun(grid), Federation(folder).settings())


def in_a_thread(folder: Path) -> None:
    """The same as a simulation does it: the main thread is Flower's."""
    worker = threading.Thread(target=begin_run, args=(folder,), daemon=True)
    worker.start()
    worker.join()


@contextlib.contextmanager
def process(work, folder: Path):
    """A process of its own with Flower's signal handlers, once it is at work in a folder."""
    child = os.fork()
    if child == 0:
        try:
            telemetry.FLWR_TELEMETRY_ENABLED = "0"
            register_signal_handlers(telemetry.EventType.FLWR_SERVERAPP_RUN_LEAVE)
            work(folder)
        finally:
            os._exit(0)
    try:
        for _ in range(3000):
            if (folder / "figures").is_dir():
                break
            time.sleep(0.01)
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("work", [begin_run, in_a_thread])
def test_a_run_that_is_stopped_says_so(tmp_path: Path, how: int, work) -> None:
    with process(work, tmp_path / "run") as child:
        assert status_in(tmp_path / "run")["state"] == "running"
        os.kill(child, how)
        os.waitpid(child, 0)
    status = status_in(tmp_path / "run")
    assert status["state"] == "stopped" and "it was stopped (flwr stop" in status["reason"]
    assert status["ended"] >= status["started"] and status["flwr_run_id"] == str(RUN_ID)


def test_a_run_that_is_killed_is_found_interrupted(tmp_path: Path, caplog) -> None:
    folder = tmp_path / "run"
    with process(begin_run, folder) as child:
        assert settle_status(folder)["state"] == "running"
        with pytest.raises(RunFolderError, match=rf"working in it \(flwr stop {RUN_ID} ends it\)"):
            RunFolder.create(str(folder), seed=0, resume=True)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert status_in(folder)["state"] == "running"
    written = (folder / "status.json").stat().st_mtime
    found = settle_status(folder)
    assert found == status_in(folder) and found["state"] == "interrupted"
    assert "killed, crashed" in found["reason"] and found["ended"] in found["reason"]
    assert found["ended"].startswith(time.strftime("%Y-%m-%dT%H:%M", time.localtime(written)))
    assert "was interrupted" in caplog.text
    assert settle_status(folder) == found  # and it stays so


def interrupted(folder: Path) -> Path:
    made = RunFolder.create(str(folder), seed=3)
    made.write_json("config.json", {"seed": 3})
    made.close()
    return folder


def test_whatever_reads_the_folder_later_says_so(tmp_path: Path, caplog) -> None:
    again = RunFolder.create(str(interrupted(tmp_path / "one")), seed=3, resume=True)
    assert status_in(tmp_path / "one")["state"] == "interrupted"  # it may yet be refused
    again.begin()
    assert status_in(tmp_path / "one")["state"] == "running"
    taken = RoundFolder(tmp_path / "new", uploads_from=interrupted(tmp_path / "two"))
    with pytest.raises(ConfigError, match="no such file.*its run is interrupted"):
        taken.earlier()
    with pytest.raises(ConfigError, match="no such file.*its run goes on"):
        RoundFolder(tmp_path / "new", uploads_from=tmp_path / "one").earlier()
    with pytest.raises(RunFolderError, match="can't be diagnosed, its run goes on"):
        read_run(tmp_path / "one", "cpu", dense=False)
    with pytest.raises(RunFolderError, match="can't be diagnosed, its run is interrupted"):
        read_run(interrupted(tmp_path / "three"), "cpu", dense=False)
    assert caplog.text.count("was interrupted") == 3


def test_a_folder_that_cannot_be_written_is_told_of_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(tmp_path)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", denied)
        assert settle_status(folder)["state"] == "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", denied)
        assert settle_status(folder)["state"] == "running"  # nobody knows better


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ValueError("a\x1b[2Jb\nc"), "failed"),
        (KeyboardInterrupt(), "stopped"),
        (SystemExit(0), "stopped"),
    ],
)
def test_an_ending_says_who_ended_it(folder: RunFolder, error: BaseException, state: str) -> None:
    folder.end_by(error)
    status = status_in(folder.path)
    assert status["state"] == state and status["reason"].isprintable()
    folder.end_by(RuntimeError("what came of it"))
    folder.stop()
    assert status_in(folder.path) == status  # the first is the one to tell


def test_who_is_not_at_work_in_it_records_nothing(folder: RunFolder) -> None:
    folder.close()
    other = RunFolder.create(str(folder.path), seed=3, resume=True)
    folder.stop()
    folder.end_by(ValueError("late"))
    assert status_in(folder.path)["state"] == "running"
    other.finish("completed")
    other.stop()
    assert status_in(folder.path)["state"] == "completed"


@pytest.mark.parametrize("run_id", ["7; reboot", "", "9" * 21, 7, None, ["7"]])
def test_only_an_id_is_told_as_one(folder: RunFolder, run_id: object) -> None:
    """Somebody may paste the command."""
    folder.write_json("status.json", {**status_in(folder.path), "flwr_run_id": run_id})
    with pytest.raises(RunFolderError, match="is working in it, set output.run-dir"):
        RunFolder.create(str(folder.path), seed=3, resume=True)
