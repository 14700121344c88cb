"""What to try next, chance, and intervals."""

import pytest

from fedmitr_app.config import default_run_config
from fedmitr_app.report.advice import next_steps
from fedmitr_app.report.chance import chance_of, interval_of, interval_words
from fedmitr_app.report.data import ClientRow, Curves, ReportData

LOST = [ClientRow("a", status="no reply")]


def data_of(student: float, **accuracy: object) -> ReportData:
    return ReportData(
        default_run_config(),
        metrics={"accuracy": {"student": student, **accuracy}},
        class_names=[str(index) for index in range(10)],
        distillation=Curves([0], {"loss": [1.0]}),
        test_images=1000,
    )


def test_a_good_run_has_nothing_to_try() -> None:
    assert next_steps(data_of(0.85, teacher=0.88, fedavg=0.3, clients={"a": 0.4})) == []
    assert next_steps(ReportData()) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (data_of(0.3, fedavg=0.5), "One-round FedAvg is better by 20.0 points"),
        (data_of(0.3, clients={"a": 0.4, "b": None}), "The best client alone is better by 10.0"),
        (data_of(0.6, teacher=0.9), "30.0 points below its teacher"),
        (data_of(0.105, teacher=0.9, clients={"a": 0.5}), "is at chance (10.5 %) while"),
        (data_of(0.1, clients={"a": 0.11}), "Even the best client is at chance (11.0 %)"),
        (data_of(0.3, teacher=0.4, clients={"a": 0.45}), "The teacher (40.0 %) is no better"),
    ],
)
def test_a_bad_run_is_told_what_to_change(data: ReportData, words: str) -> None:
    (found,) = [step for step in next_steps(data) if words in step]
    known = [key for key in default_run_config() if "." in key and key in found]
    assert known, found


def test_clients_that_failed_are_to_be_mended() -> None:
    data = data_of(0.9)
    lost = ReportData(
        data.config, metrics=data.metrics, clients=[ClientRow("a", status="no reply")]
    )
    assert "Mend" in next_steps(lost)[-1]


def test_chance_is_the_most_frequent_class() -> None:
    assert chance_of(data_of(0.5)) == 0.1
    uneven = ReportData(metrics={"by_class": {"images": [30, 10]}}, class_names=["a", "b"])
    assert chance_of(uneven) == 0.75
    assert chance_of(ReportData()) is None


def test_wilson_by_hand() -> None:
    # (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    z, n, p = 1.959963984540054, 100, 0.8
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    by_hand = [(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    assert interval_of(p, n) == pytest.approx(by_hand)
    assert interval_words(p, n) == "71.1 to 86.7 %"
    assert interval_of(0.5, 0) is None and interval_words(0.5, 0) == ""
