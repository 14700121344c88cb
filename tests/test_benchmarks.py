"""The benchmarks' own arithmetic, and that each part of them runs."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from benchmarks.__main__ import EACH, SIZES, main
from benchmarks.common import Results, random_vit
from benchmarks.estimate import parts
from benchmarks.inversion import Size
from fedmitr_app.config import DistillationConfig, InversionConfig
from fedmitr_app.inversion.flops import step_flops

TINY = Size("small", 28, 2, 4, 5)
CPU = torch.device("cpu")


@pytest.mark.parametrize("part", EACH)
def test_each_part_measures_and_says_of_what(part):
    results = Results({"commit": "none"})
    EACH[part](results, TINY, CPU)
    table = results.table()
    assert (table.value > 0).all()
    assert set(table.commit) == {"none"} and set(table.clients) >= {2}


def test_a_part_without_figures_leaves_an_empty_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SIZES["cpu"], "options", [TINY])
    common = ["--out", str(tmp_path), "--threads", str(torch.get_num_threads())]
    main(["--only", "profile", *common])
    assert "aten::" in (tmp_path / "profile.txt").read_text()
    assert (tmp_path / "results.csv").exists() and not (tmp_path / "growth.png").exists()
    monkeypatch.setitem(SIZES["cpu"], "training", [TINY])
    main(["--only", "training", *common])
    first = pd.read_csv(tmp_path / "results.csv")
    # Its own table takes that one's place; the figures are the earlier run's all the same.
    first.assign(value=0.5).to_csv(tmp_path / "results.csv", index=False)
    capsys.readouterr()
    main(["--only", "training", "--against", str(tmp_path / "results.csv"), *common])
    assert capsys.readouterr().out.splitlines()[-2].endswith(" / 0.5")


def test_figures_are_compared_with_an_earlier_runs(tmp_path, capsys):
    earlier, later = Results({}), Results({})
    earlier.add("part", "case", "time", 2.0, "s")
    later.add("part", "case", "time", 1.0, "s")
    later.add("part", "case", "another", 1.0, "s")
    earlier.table().to_csv(tmp_path / "results.csv", index=False)
    assert len(pd.read_csv(tmp_path / "results.csv")) == 1
    capsys.readouterr()
    later.compare(pd.read_csv(tmp_path / "results.csv"), tmp_path / "results.csv")
    assert capsys.readouterr().out.splitlines()[2:] == ["part: case: time: 1 / 2"]


@pytest.mark.parametrize(
    ("changes", "teacher", "student"),
    [
        ({"relabel": "none"}, False, False),
        ({"relabel": "image"}, False, True),
        ({"relabel": "token"}, True, True),
        ({"relabel": "token", "beta": 0.0}, False, False),
    ],
)
def test_the_estimate_counts_every_pass(changes, teacher, student):
    """Against the passes counted by hand: a step is a forward and a backward of one cost."""
    model = random_vit("small", 28, CPU).requires_grad_(False)
    inversion = replace(
        InversionConfig(),
        images=3,
        iterations=5,
        schedule="dense",
        candidates=2,
        teachers_per_image=0,
    )
    distillation = replace(
        DistillationConfig(), **{"beta": 1.0, **changes}, steps=16, repeats=8, batch_size=4
    )
    found = parts(model, 7, inversion, distillation, probes=11)
    forward, with_tokens = (step_flops(model, model.num_patches, asked) / 2 for asked in (0, 1))
    assert found == {
        "estimating client priors": 7 * 11 * forward,
        "inversion": 3 * 7 * (2 + 5 * 2) * forward,
        "distillation: teacher": 2 * 4 * 7 * (with_tokens if teacher else forward),
        "distillation: student": 16 * 4 * 3 * (with_tokens if student else forward),
    }
    few = parts(model, 7, replace(inversion, teachers_per_image=2), distillation, probes=11)
    assert few["inversion"] == 3 * (7 * 2 + 2 * 5 * 2) * forward
    sparse = parts(model, 7, replace(inversion, schedule="sparse"), distillation, probes=11)
    assert sparse["inversion"] < found["inversion"]


def test_the_estimate_of_a_forward_pass_is_near_what_is_counted():
    """Half of a step: the backward pass to the pixels alone costs about as much."""
    model = random_vit("small", 28, CPU).requires_grad_(False)
    images = torch.zeros(1, 1, 28, 28)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    step = step_flops(model, model.num_patches)
    assert counter.get_total_flops() == pytest.approx(step / 2, rel=0.15)
