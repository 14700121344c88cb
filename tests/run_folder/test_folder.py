"""The run folder: claimed once, never half written."""

import json
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedmitr_app.errors import RunFolderError
from fedmitr_app.run_folder import RunFolder
from fedmitr_app.run_folder.status import read_status
from fedmitr_app.utils.files import write_json


def test_a_named_folder_is_made_absolute_and_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create("deep/down", seed=7)
    assert folder.path == tmp_path / "deep" / "down"
    state = json.loads((folder.path / "status.json").read_text())
    assert state["id"] == folder.run_id
    assert state["state"] == "running"
    assert state["seed"] == 7
    for sub in (folder.uploads, folder.rejected, folder.pool, folder.figures):
        assert sub.is_dir()


def test_an_empty_existing_folder_is_taken(tmp_path: Path) -> None:
    assert RunFolder.create(str(tmp_path), seed=0).path == tmp_path


def test_runs_of_the_same_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = [RunFolder.create("", seed=5) for _ in range(3)]
    assert len({folder.path for folder in made}) == 3
    assert all(folder.path.parent == tmp_path / "fedmitr-runs" for folder in made)
    assert all("-seed5" in folder.path.name for folder in made)


@pytest.mark.parametrize(
    ("holds", "said"), [("status.json", "another run"), ("holiday.jpg", "other files")]
)
def test_a_used_folder_is_refused_and_left_alone(tmp_path: Path, holds: str, said: str) -> None:
    (tmp_path / holds).write_text("precious")
    with pytest.raises(RunFolderError) as refusal:
        RunFolder.create(str(tmp_path), seed=0)
    sentence = str(refusal.value)
    assert "output.run-dir" in sentence
    assert str(tmp_path) in sentence
    assert said in sentence
    assert [path.name for path in tmp_path.iterdir()] == [holds]
    assert (tmp_path / holds).read_text() == "precious"


def test_of_two_runs_that_start_at_once_one_loses(tmp_path: Path) -> None:
    first = RunFolder.create(str(tmp_path / "run"), seed=0)
    with pytest.raises(RunFolderError, match="already holds another run"):
        RunFolder.create(str(tmp_path / "run"), seed=0)
    with pytest.raises(RunFolderError, match="another process is working in it"):
        RunFolder.create(str(tmp_path / "run"), seed=0, resume=True)
    first.close()
    assert RunFolder.create(str(tmp_path / "run"), seed=0, resume=True).settings is None


def test_a_run_that_was_stopped_is_gone_on_with(tmp_path: Path) -> None:
    first = RunFolder.create(str(tmp_path), seed=3)
    first.write_json("config.json", {"seed": 3})
    (first.pool / "shard").write_text("kept")
    first.finish("failed", "the disk was full")
    first.close()
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("failed", "the disk was full")
    with pytest.raises(RunFolderError, match="already holds another run"):
        RunFolder.create(str(tmp_path), seed=3)
    again = RunFolder.create(str(tmp_path), seed=3, resume=True)
    assert again == replace(first, settings={"seed": 3})
    assert json.loads((tmp_path / "status.json").read_text()) == status  # it may yet be refused
    again.begin()
    assert again.uploads.is_dir() and (again.pool / "shard").read_text() == "kept"
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
    again.finish("completed")
    again.close()
    done = RunFolder.create(str(tmp_path), seed=3, resume=True)
    assert done.completed
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "completed"


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"id": "x"}'])
def test_a_damaged_status_is_one_sentence_and_changes_nothing(tmp_path: Path, damage: str) -> None:
    folder = RunFolder.create(str(tmp_path), seed=3)
    folder.write_json("config.json", {"seed": 3})
    folder.close()
    (tmp_path / "status.json").write_text(damage)
    with pytest.raises(RunFolderError, match="status.json or config.json in it is damaged"):
        RunFolder.create(str(tmp_path), seed=3, resume=True)
    assert (tmp_path / "status.json").read_text() == damage


def test_resuming_never_takes_over_a_folder_that_is_not_a_runs(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("precious")
    with pytest.raises(RunFolderError, match="other files"):
        RunFolder.create(str(tmp_path), seed=0, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunFolderError, match=r"output\.run-dir.*a file stands there"):
        RunFolder.create(str(tmp_path / "taken"), seed=0)


@pytest.mark.parametrize("path", ["file/below", "null\0byte", "~nobody-by-this-name/x"])
def test_an_unusable_path_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"^output\.run-dir = .* cannot be used: ") as refusal:
        RunFolder.create(path, seed=0)
    assert "\n" not in str(refusal.value)


def test_no_permission_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    for path in (str(tmp_path / "x"), ""):
        with pytest.raises(RunFolderError, match=r"output\.run-dir.*permission denied"):
            RunFolder.create(path, seed=0)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("files", [False, True])
def test_a_folder_that_may_not_be_looked_into_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool, files: bool
) -> None:
    """Tests may run as root, whom no mode stops: the system's answers are put in."""

    def denied(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "file").write_text("")
    with monkeypatch.context() as patch, pytest.raises(RunFolderError) as refusal:
        patch.setattr(Path, "exists" if files else "iterdir", denied)
        RunFolder.create(str(tmp_path), seed=0, resume=resume)
    words = "holds other files" if files else "cannot be used: permission denied"
    assert words in str(refusal.value)


def test_a_working_directory_that_is_gone_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(RunFolderError, match=r"^output\.run-dir = 'fedmitr-runs' cannot be used"):
        RunFolder.create("", seed=0)
    monkeypatch.chdir(tmp_path)


def test_who_stops_a_run_that_ends_just_now_leaves_how_it_ended(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exit handler has read "running" when the run's own thread writes "completed"."""
    finishing = threading.Thread(target=folder.finish, args=("completed",))

    def read(path: Path) -> dict[str, Any]:
        found = read_status(path)
        finishing.start()
        finishing.join(0.3)  # it may not end before what was read is acted on
        return found

    monkeypatch.setattr("fedmitr_app.run_folder.folder.read_status", read)
    folder.stop()
    finishing.join(30)
    assert read_status(folder.path)["state"] == "completed"


def test_json_is_valid_whatever_it_is_given(folder: RunFolder) -> None:
    values = {
        "nan": float("nan"),
        "infinite": torch.tensor(float("inf")),
        "tensor": torch.arange(4).view(2, 2),
        "array": np.float32([0.5]),
        "scalar": np.int64(3),
        "nested": {1: (True, None, "ü\ud800")},
        "path": Path("somewhere"),
    }
    path = folder.write_json("metrics.json", values)
    assert path == folder.path / "metrics.json"

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(path.read_text(), parse_constant=no_constants) == {
        "nan": None,
        "infinite": None,
        "tensor": [[0, 1], [2, 3]],
        "array": [0.5],
        "scalar": 3,
        "nested": {"1": [True, None, "ü\ud800"]},
        "path": "somewhere",
    }


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"old": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(RunFolderError, match=r"metrics\.json cannot be written: no space left"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_finishing_records_the_state_and_drops_empty_folders(folder: RunFolder) -> None:
    (folder.uploads / "client-0.json").write_text("{}")
    folder.finish("completed")
    state = json.loads((folder.path / "status.json").read_text())
    assert state["state"] == "completed"
    assert state["id"] == folder.run_id
    assert state["ended"] >= state["started"]
    assert folder.uploads.is_dir()
    assert not folder.rejected.exists()


def test_every_file_is_as_readable_as_any_other(folder: RunFolder) -> None:
    plain = folder.path / "plain"
    plain.touch()
    folder.save_model({"w": torch.zeros(2)}, {"name": "small"}, {}, [])
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir() if path.is_file()}
    assert modes == {stat.S_IMODE(plain.stat().st_mode)}


def begun(path: Path) -> Path:
    """A run that was stopped once it had settings and a shard."""
    folder = RunFolder.create(str(path), seed=3)
    folder.write_json("config.json", {"seed": 3})
    (folder.pool / "shard").write_text("kept")
    folder.close()
    return path


@pytest.mark.parametrize("what", ["link", "pipe"])
@pytest.mark.parametrize("place", ["status.json", ".lock", "config.json", "pool", "pool/shard"])
def test_a_run_in_a_folder_with_links_or_pipes_is_not_gone_on_with(
    tmp_path: Path, place: str, what: str
) -> None:
    run = begun(tmp_path / "run")
    elsewhere = (run / place).rename(tmp_path / "elsewhere")
    if what == "link":
        (run / place).symlink_to(elsewhere)
    else:
        os.mkfifo(run / place)
    before = sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with pytest.raises(RunFolderError, match=rf"output\.run-dir.*it is a {what} and no") as told:
        RunFolder.create(str(run), seed=3, resume=True)
    assert "\n" not in str(told.value)
    after = sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert [each for each in after if each[0].name not in (".lock", "run")] == [
        each for each in before if each[0].name not in (".lock", "run")
    ]


@pytest.mark.parametrize("resume", [True, False])
def test_a_lock_that_leads_elsewhere_leaves_what_it_leads_to_alone(
    tmp_path: Path, resume: bool
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(victim)
    with pytest.raises(RunFolderError, match=r"it is a link and no ordinary file"):
        RunFolder.create(str(run), seed=3, resume=resume)
    (run / ".lock").unlink()
    (run / ".lock").hardlink_to(victim)
    RunFolder.create(str(run), seed=3, resume=resume)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("status.json", '{"id": 1, "started": "x", "state": "failed"}'),
        ("status.json", '{"id": "x", "started": null, "state": "failed"}'),
        ("status.json", '{"id": "x", "started": "x", "state": ["failed"]}'),
        ("status.json", "[" * 100_000),
        ("config.json", '{"seed": [1, 2]}'),
        ("config.json", '{"seed": NaN}'),
        ("config.json", '"seed"'),
        ("config.json", "\xff"),
    ],
)
def test_what_no_run_wrote_is_one_sentence(tmp_path: Path, name: str, content: str) -> None:
    run = begun(tmp_path / "run")
    (run / name).write_text(content, encoding="latin-1")
    with pytest.raises(RunFolderError, match="in it is damaged") as told:
        RunFolder.create(str(run), seed=3, resume=True)
    assert "\n" not in str(told.value)
    # The folder is not held on to.
    assert RunFolder.create(str(begun(tmp_path / "other")), seed=3, resume=True).settings


def test_who_may_look_into_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads and synthetic images show what clients' data looked like."""
    monkeypatch.chdir(tmp_path)
    for path in ("", "named"):
        folder = RunFolder.create(path, seed=3)
        for private in (folder.path, folder.uploads, folder.rejected, folder.pool):
            assert stat.S_IMODE(private.stat().st_mode) == 0o700
    tmp_path.chmod(0o755)
    (tmp_path / "mine").mkdir(mode=0o755)
    RunFolder.create("mine", seed=3)  # whoever made it has said who may
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o755
