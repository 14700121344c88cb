"""The sentences: what they claim follows from the numbers."""

import shlex
import tomllib
from dataclasses import replace

import pytest

from fedmitr_app.config import default_run_config
from fedmitr_app.report.data import ClientRow, ReportData
from fedmitr_app.report.verdict import (
    headline_sentence,
    inversion_worth,
    reproduce_command,
    warnings,
    what_the_command_lacks,
)
from tests.helpers.made_up_run import make_data


def with_accuracy(test_images: int = 1000, **accuracy: float) -> ReportData:
    return ReportData(default_run_config(), metrics={"accuracy": accuracy}, test_images=test_images)


def test_the_headline_compares_with_teacher_and_fedavg() -> None:
    assert headline_sentence(make_data()) == (
        "The student reaches 85.0 % with one upload from each of 2 clients: "
        "96.2 % of its teacher's 88.4 % and 2.9 times one-round FedAvg's 29.5 %."
    )


def test_the_headline_counts_whose_models_were_used() -> None:
    rows = [ClientRow(name, status=name) for name in ("ok", "suspicious", "left out", "rejected")]
    data = replace(with_accuracy(student=0.5), clients=rows)
    assert "one upload from each of 2 clients" in headline_sentence(data)
    lost, strange = warnings(data)
    assert "2 of 4 clients took no part" in lost
    assert "1 of 4 clients looks suspicious, used all the same" in strange
    assert "far more images" in strange and "teacher.defence" in strange


def test_the_headline_without_some_or_all_numbers() -> None:
    assert headline_sentence(with_accuracy(student=0.5)) == "The student reaches 50.0 %."
    assert headline_sentence(with_accuracy(student=0.5, teacher=0.0, fedavg=0.0)).endswith(
        "50.0 %."
    )
    assert headline_sentence(with_accuracy(fedavg=0.3)) == "Test accuracy: fedavg 30.0 %."
    assert "no test set" in headline_sentence(ReportData())


def evaluated(accuracy: dict[str, float], **scores: tuple[float, int, int | None]) -> ReportData:
    names = {"held": "accuracy-on-hold-out", "trained": "accuracy-on-training-shard"}
    metrics = {
        "accuracy": accuracy,
        "federated_evaluation": {names[key]: score[0] for key, score in scores.items()},
        "federated_evaluation_basis": {
            names[key]: {"nodes": nodes, "images": images}
            for key, (_, nodes, images) in scores.items()
        },
    }
    return ReportData(metrics=metrics, clients=[ClientRow("a"), ClientRow("b")])


def test_the_headline_says_what_clients_measured_and_on_what() -> None:
    blind = evaluated({}, held=(0.83, 3, 60))
    assert headline_sentence(blind) == (
        "By the clients' own measure the global model reaches 83.0 % on images that clients held "
        "out (60 images of 3 nodes) with one upload from each of 2 clients."
    )
    both = evaluated({"student": 0.5}, trained=(0.9, 1, None), held=(0.8, 2, 1))
    assert headline_sentence(both) == (
        "The student reaches 50.0 % with one upload from each of 2 clients. By the clients' own "
        "measure it reaches 80.0 % on images that clients held out (1 image of 2 nodes) and "
        "90.0 % on images that clients trained on (1 node, all counted alike)."
    )
    odd = ReportData(metrics={"federated_evaluation": {"accuracy-on-hold-out": 0.5}})
    assert "50.0 % on images that clients held out (nodes, all counted" in headline_sentence(odd)


@pytest.mark.parametrize(
    ("student", "control", "worth", "words"),
    [
        (0.85, 0.79, True, "Choosing and inverting images earned 6.0 points"),
        (0.80, 0.79, False, "which is within the noise of 1000 test images"),
        (0.79, 0.79, False, "Choosing and inverting images earned nothing here"),
        (0.79, 0.80, False, "1.0 points more"),
    ],
)
def test_inversion_is_worth_what_it_adds_to_the_control(
    student: float, control: float, worth: bool, words: str
) -> None:
    verdict = inversion_worth(with_accuracy(student=student, control=control))
    assert verdict.worth is worth
    assert words in verdict.sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"candidates": 1}, "Inverting images earned 6.0 points"),
        ({"iterations": 0}, "Choosing images earned"),
        (
            {"iterations": 0, "candidates": 1, "initial-images": "white"},
            "White noise, neither chosen nor inverted, earned",
        ),
    ],
)
def test_the_verdict_names_only_what_was_done(changes: dict[str, object], words: str) -> None:
    data = with_accuracy(student=0.85, control=0.79)
    config = data.config | {f"inversion.{key}": value for key, value in changes.items()}
    assert inversion_worth(replace(data, config=config)).sentence.startswith(words)


def test_more_test_images_tell_smaller_differences() -> None:
    assert inversion_worth(with_accuracy(100_000, student=0.80, control=0.79)).worth
    assert inversion_worth(with_accuracy(student=0.8)) is None


def test_warnings_name_what_a_reader_would_not_expect() -> None:
    assert warnings(make_data(clients=[ClientRow("a")])) == []
    lost, worse, single = warnings(
        ReportData(
            metrics={"accuracy": {"student": 0.2, "fedavg": 0.3, "clients": {"a": 0.4}}},
            clients=[ClientRow("a"), ClientRow("b", status="failed")],
        )
    )
    assert lost.startswith("1 of 2 clients")
    assert "FedAvg" in worse
    assert "single client" in single


COMMAND = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 flwr run . --stream --run-config "


def test_the_command_repeats_what_was_changed() -> None:
    defaults = default_run_config()
    untouched = ReportData(config={**defaults, "output.run-dir": "/x"}, defaults=defaults)
    assert reproduce_command(untouched) == f'{COMMAND}"seed=0"'
    changes = {"preset": "quick", "client.share-label-counts": True, "seed": 2}
    changed = ReportData({**defaults, **changes}, defaults, asked=3, simulated=True)
    assert reproduce_command(changed) == (
        f"{COMMAND}\"seed=2 preset='quick' client.share-label-counts=true\" "
        '--federation-config "num-supernodes=3"'
    )
    assert "client-resources-num-cpus" in what_the_command_lacks(changed)


def test_the_command_invents_no_federation_for_a_deployment() -> None:
    deployed = ReportData({"seed": 1}, asked=4)
    assert reproduce_command(deployed) == f'{COMMAND}"seed=1"'
    assert "4 nodes of a deployment were" in what_the_command_lacks(deployed)
    assert "1 node of a deployment was asked" in what_the_command_lacks(ReportData(asked=1))
    assert "unknown here" in what_the_command_lacks(ReportData())


@pytest.mark.parametrize("path", ["it's here", "$HOME `id` !", "C:\\data", 'say "a"'])
def test_the_command_survives_shell_and_toml(path: str) -> None:
    data = ReportData({"data.path": path}, {"data.path": ""})
    assert tomllib.loads(shlex.split(reproduce_command(data))[-1]) == {"data": {"path": path}}
