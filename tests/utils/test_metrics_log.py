"""metrics.jsonl: whole lines, soon on disk, and never in the way of another error."""

import json
import os
import threading
from pathlib import Path

import pytest
import torch

from fedmitr_app.errors import RunFolderError
from fedmitr_app.utils.metrics_log import MetricsLog
from tests.helpers.clock import Clock


def lines(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_lines_reach_the_disk_every_few_seconds(tmp_path: Path) -> None:
    clock = Clock()
    log, on_disk = MetricsLog(tmp_path, every_seconds=2.0, clock=clock), []
    for step in range(10):
        clock.now += 0.5
        log.add("distillation", step=step)
        on_disk.append(len(lines(tmp_path)))
    assert on_disk == [0, 0, 0, 4, 4, 4, 4, 8, 8, 8]
    with log:
        log.add("distillation", step=10)
    assert [line["step"] for line in lines(tmp_path)] == list(range(11))


def test_whatever_is_measured_is_valid_json(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.add("inversion", iteration=1, loss=torch.tensor(0.5))
        log.add("inversion", iteration=2, loss=float("nan"), note="two\nlines")
    assert lines(tmp_path) == [
        {"stage": "inversion", "iteration": 1, "loss": 0.5},
        {"stage": "inversion", "iteration": 2, "loss": None, "note": "two\nlines"},
    ]


def test_a_stage_that_fails_leaves_its_lines(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), MetricsLog(tmp_path) as log:
        log.add("inversion", loss=1.0)
        raise KeyboardInterrupt
    assert lines(tmp_path) == [{"stage": "inversion", "loss": 1.0}]


def test_a_folder_that_is_gone_is_one_sentence_unless_something_worse_happened(
    tmp_path: Path,
) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl cannot be written: no such file"):
        with MetricsLog(gone) as log:
            log.add("inversion", loss=1.0)
    with pytest.raises(KeyboardInterrupt), MetricsLog(gone) as log:
        log.add("inversion", loss=1.0)
        raise KeyboardInterrupt


@pytest.mark.parametrize("what", ["snapshot", "link", "pipe"])
def test_what_may_not_be_appended_to_makes_way(what: str, tmp_path: Path, caplog) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    log = MetricsLog(folder, every_seconds=0.0)
    for step in range(3):  # two snapshots, as of `cp -al`, each while the run goes on
        log.add("inversion", step=step)
        if what == "snapshot" and step < 2:
            (tmp_path / f"snapshot-{step}").hardlink_to(folder / "metrics.jsonl")
        elif step == 0:
            (folder / "metrics.jsonl").rename(elsewhere)
            if what == "pipe":
                os.mkfifo(folder / "metrics.jsonl")
            else:
                (folder / "metrics.jsonl").symlink_to(elsewhere)
    assert lines(folder)[-1] == {"stage": "inversion", "step": 2}
    assert "has another name too, or is no ordinary file: it is metrics-1.jsonl now" in caplog.text
    if what == "snapshot":
        kept = [folder / f"metrics-{n}.jsonl" for n in (1, 2)]
        assert [json.loads(path.read_text())["step"] for path in kept] == [0, 1]
        assert json.loads((tmp_path / "snapshot-0").read_text())["step"] == 0
    else:
        assert json.loads(elsewhere.read_text())["step"] == 0


def test_without_a_folder_nothing_is_kept() -> None:
    with MetricsLog(None) as log:
        log.add("inversion", loss=1.0)
    assert log._waiting == []


def test_stages_side_by_side_lose_no_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, every_seconds=0.0)

    def write(stage: str) -> None:
        for step in range(300):
            log.add(stage, step=step)

    with log:
        threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b", "c")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    written = lines(tmp_path)
    for name in ("a", "b", "c"):
        assert [line["step"] for line in written if line["stage"] == name] == list(range(300))
