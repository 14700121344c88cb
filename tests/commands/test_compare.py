"""``fedmitr compare`` sets completed runs beside each other."""

import json
import os
from dataclasses import replace

import pytest

from fedmitr_app.cli import main
from fedmitr_app.config import default_run_config
from fedmitr_app.errors import RunFolderError
from fedmitr_app.report.comparison import differing_settings, grouped, read_run_summary
from fedmitr_app.run_folder import COMPLETED, RunFolder

ACCURACY = {"student": 0.8, "teacher": 0.9, "fedavg": 0.2, "control": None}
CLIENTS = {"clients": {"client-0": 0.3, "client-1": 0.4}}


def finished(parent, name, state=COMPLETED, read="digits", commit="a" * 40, **settings):
    run = RunFolder.create(str(parent / name), seed=settings.get("seed", 0))
    run.write_json("config.json", {**default_run_config(), **settings})
    share = settings.get("seed", 0) / 100
    accuracy = {**ACCURACY, "student": 0.8 + share, **CLIENTS}
    run.write_json(
        "metrics.json",
        {
            "accuracy": accuracy,
            "data_read": read,
            "uploads": {"accepted": 2},
            "seconds": {"total": 70.0},
            "test_images": 1000,
        },
    )
    run.write_json("environment.json", {"commit": {"id": commit, "dirty": False}})
    run.finish(state)
    run.close()
    return run.path


def compared(tmp_path, capsys, *runs):
    page = tmp_path / "page.html"
    assert main(["compare", *map(str, runs), "--output", str(page)]) == 0
    return capsys.readouterr().out, page.read_text()


def test_runs_stand_beside_each_other_with_the_settings_in_which_they_differ(tmp_path, capsys):
    changed = {"inversion.images": 32, "seed": 3}
    runs = finished(tmp_path, "one"), finished(tmp_path, "two", **changed)
    out, page = compared(tmp_path, capsys, *runs)
    lines = out.splitlines()
    assert lines[0].split("  ")[0] == "run" and "student" in lines[0]
    row = next(line for line in lines if line.startswith("two"))
    assert row.split() == "two 3 83.0 % 90.0 % 20.0 % 40.0 % 2 1000 1 min 10 s".split()
    assert any(line.split() == ["inversion.images", "1024", "32"] for line in lines)
    assert "output.run-dir" not in out and "partition.alpha" not in out
    assert "83.0 %" in page and "inversion.images" in page and "data:image/png" in page
    assert "http" not in page.replace("http-equiv", "")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".png")]


def test_runs_of_several_seeds_are_one_row(tmp_path, capsys):
    runs = [finished(tmp_path, f"run-{seed}", seed=seed) for seed in (0, 1, 2)]
    other = finished(tmp_path, "other", seed=1, **{"merge.head": "cosine"})
    out, page = compared(tmp_path, capsys, *runs, other)
    assert any(line.split()[2:7] == ["3", "81.0", "±", "1.0", "%"] for line in out.splitlines())
    assert "81.0 ± 1.0 %" in page
    groups = grouped([read_run_summary(run) for run in (*runs, other)])
    assert [len(group.runs) for group in groups] == [3, 1]
    assert groups[1].name == "2. merge.head=cosine"


def test_what_makes_them_hard_to_compare_is_said(tmp_path, capsys):
    runs = finished(tmp_path, "one"), finished(tmp_path, "two", read="faces", commit="b" * 40)
    out, page = compared(tmp_path, capsys, *runs)
    for words in ("measured on different data", "different versions of the code"):
        assert words in out and words in page
    assert "None, but perhaps the seed." in page


def test_runs_of_other_numbers_of_clients_are_no_repetitions(tmp_path):
    runs = [read_run_summary(finished(tmp_path, f"run-{seed}", seed=seed)) for seed in (0, 1)]
    groups = grouped([runs[0], replace(runs[1], clients=9)])
    assert [group.name for group in groups] == ["1. 2 clients", "2. 9 clients"]


def test_a_run_counts_once(tmp_path, capsys):
    run = finished(tmp_path, "one")
    (tmp_path / "again").symlink_to(run)
    assert main(["compare", str(run), str(tmp_path / "again")]) == 1
    assert "again' is named twice" in capsys.readouterr().err
    out, _ = compared(tmp_path, capsys, run, finished(tmp_path, "two"))
    assert "Some runs have the same seed" in out


def test_folders_of_one_name_are_told_apart(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    out, _ = compared(tmp_path, capsys, *(finished(tmp_path / name, "run") for name in "ab"))
    assert str(tmp_path / "a" / "run") in out and str(tmp_path / "b" / "run") in out


def test_long_values_differ_though_they_are_shown_short(tmp_path):
    paths = ["x" * 700 + end for end in "ab"]
    runs = [
        read_run_summary(finished(tmp_path, name, **{"data.path": path}))
        for name, path in zip("ab", paths, strict=True)
    ]
    assert differing_settings(runs) == ["data.path"] and len(grouped(runs)) == 2


def test_what_strangers_wrote_is_escaped(tmp_path, capsys):
    evil = "<script>alert(1)</script>\x1b[2J"
    folder = finished(
        tmp_path,
        "<b>run",
        read=evil,
        commit=evil,
        **{"data.name": evil, f"{evil}\n": 1, "\ud800": 2},
    )
    out, page = compared(tmp_path, capsys, folder, finished(tmp_path, "two"))
    assert "<script>" not in page and "<b>" not in page and "\x1b" not in out + page


def test_an_earlier_page_is_replaced_and_nothing_else(tmp_path, capsys):
    run, page = finished(tmp_path, "one"), tmp_path / "page.html"
    compared(tmp_path, capsys, run)
    compared(tmp_path, capsys, run)
    page.write_text("my thesis")
    assert main(["compare", str(run), "--output", str(page)]) == 1
    assert "stays: choose another --output" in capsys.readouterr().err
    assert page.read_text() == "my thesis"
    gone = tmp_path / "link.html"
    gone.symlink_to(tmp_path / "nowhere")
    for bad in (gone, tmp_path, tmp_path / "no" / "x.html", tmp_path / ("x" * 300)):
        assert main(["compare", str(run), "--output", str(bad)]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and ".png" not in err
    assert gone.is_symlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "metrics.json").unlink(), "metrics.json of"),
        (lambda folder: (folder / "metrics.json").write_text("[]"), "it holds no table"),
        (lambda folder: (folder / "metrics.json").write_text('{"accuracy": 3}'), "accuracy in"),
        (
            lambda folder: (folder / "metrics.json").write_text('{"accuracy": {"student": true}}'),
            "student in metrics.json is True",
        ),
        (
            lambda folder: (folder / "metrics.json").write_text(
                '{"accuracy": {"clients": {"a": -1, "b": 0.5}}}'
            ),
            "a in metrics.json is -1",
        ),
        (
            lambda folder: (folder / "metrics.json").write_text(
                '{"accuracy": {}, "uploads": {"accepted": 2.5}}'
            ),
            "no whole number",
        ),
        (
            lambda folder: (folder / "metrics.json").write_text('{"accuracy": {"student": 7}}'),
            "student in metrics.json is 7",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "can't be read"),
        (lambda folder: (folder / "environment.json").write_text('{"commit": 1}'), "commit in"),
    ],
)
def test_a_damaged_run_is_one_sentence(tmp_path, capsys, change, words):
    folder = finished(tmp_path, "one")
    change(folder)
    assert main(["compare", str(folder)]) == 1
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_a_run_that_is_not_over_or_none_is_one_sentence(tmp_path, capsys):
    with pytest.raises(RunFolderError, match="its run is failed: name folders of completed runs"):
        read_run_summary(finished(tmp_path, "failed", "failed"))
    with pytest.raises(RunFolderError, match="holds no status of a run"):
        read_run_summary(tmp_path)
    with pytest.raises(RunFolderError, match="is no folder"):
        read_run_summary(tmp_path / "nowhere")
    os.mkfifo(finished(tmp_path, "one") / "x")
    folder = finished(tmp_path, "piped")
    (folder / "metrics.json").unlink()
    os.mkfifo(folder / "metrics.json")
    with pytest.raises(RunFolderError, match="pipe"):
        read_run_summary(folder)


def test_settings_of_another_version_are_compared_too(tmp_path):
    old = finished(tmp_path, "old")
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**config, "gone.setting": 3}))
    runs = [read_run_summary(old), read_run_summary(finished(tmp_path, "new", seed=1))]
    assert differing_settings(runs) == ["seed", "gone.setting"]
