"""The command line: one word chooses, and a user's mistake is one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fedmitr_app as fedmitr
from fedmitr_app.cli import COMMANDS, main
from tests.helpers.library import states, vit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    names = ["cat", "dog", "owl"]
    fedmitr.fuse(states(), vit(), method="fedavg", run_dir=folder, class_names=names)
    return folder


@pytest.fixture
def images(tmp_path):
    paths = []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_predict_says_what_the_predictor_does(run_dir, images, capsys):
    expected = fedmitr.load(run_dir).predict(images)
    assert main(["predict", str(run_dir), *images, "--device", "cpu", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, image, told in zip(lines, images, expected, strict=True):
        assert line.startswith(f"{image}: {told.label} {100 * told.probability:.1f} %, ")
        assert line.count("%") == 2
    assert main(["predict", str(run_dir), *images, "--json"]) == 0
    for line, told in zip(capsys.readouterr().out.splitlines(), expected, strict=True):
        found = json.loads(line)
        assert found["label"] == told.label
        assert found["probabilities"] == pytest.approx(told.probabilities)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "nowhere.png"], "nowhere.png' does not exist"),
        (["nowhere", "x.png"], "holds no global model"),
        (["RUN", "x.png", "--top", "0"], "--top = 0 is not allowed"),
        (["RUN", "x.png", "--device", "tpu"], "device = 'tpu'"),
    ],
)
def test_a_mistake_is_one_sentence(run_dir, capsys, arguments, words):
    given = [str(run_dir) if word == "RUN" else word for word in arguments]
    assert main(["predict", *given]) == 1
    told = capsys.readouterr()
    assert words in told.err and told.err.count("\n") == 1 and not told.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_of_its_own(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: fedmitr {command} ")


def test_an_unknown_command_names_those_there_are(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["predicts"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert all(name in told for name in COMMANDS)


def test_it_runs_as_a_module_and_without_flower_or_torch_for_help():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fedmitr_app", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "experiments" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"torch", "flwr", "ray"}
