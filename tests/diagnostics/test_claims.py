"""Sentences, both ways; and what stays unsaid."""

from dataclasses import replace

from fedmitr_app.diagnostics import Diagnosis, verdicts
from fedmitr_app.diagnostics.claims import Claim, judge
from fedmitr_app.diagnostics.curvature import Eigenvalue
from fedmitr_app.diagnostics.figures import StudentFigures
from fedmitr_app.diagnostics.gap import Gap
from fedmitr_app.diagnostics.gradients import GradientFigures
from fedmitr_app.diagnostics.variance import Variance

SMALL = GradientFigures(0.1, 0.2, 0.3, 0.4, 0.5, (0.1,), (0.2,))
LARGE = GradientFigures(1.0, 2.0, 3.0, 4.0, 5.0, (1.0,), (2.0,))
STEADY = StudentFigures(1.0, Eigenvalue(-2.0, 9, True), Gap(0.9, 0.2, 0.8, 0.4))
SHAKY = StudentFigures(2.0, Eigenvalue(3.0, 9, False), Gap(0.9, 0.2, 0.6, 0.9))
WELL = Diagnosis(
    gradients={"dense": LARGE, "sparse": SMALL},
    variance={"hard": Variance(3, 30), "relabel": Variance(1, 10), "none": Variance(2, 20)},
    students={"run": STEADY, "dense": SHAKY},
)
BADLY = Diagnosis(
    gradients={"dense": SMALL, "sparse": LARGE},
    variance={"hard": Variance(1, 10), "relabel": Variance(2, 20), "none": Variance(2, 20)},
    students={"run": SHAKY, "dense": STEADY},
)


def test_a_claim_is_one_sentence_with_both_figures():
    held = judge(Claim("Sparse is steadier than dense", 0.12, 0.31))
    assert held == ("Sparse is steadier than dense: 0.12 against 0.31, holds here.", True)
    failed = judge(Claim("Sparse is steadier than dense", 0.31, 0.12))
    expected = "Sparse is steadier than dense: 0.31 against 0.12, does not hold here."
    assert failed == (expected, False)


def test_a_tie_does_not_hold_and_a_near_tie_shows_enough_digits():
    assert not judge(Claim("a", 0.5, 0.5)).holds
    assert "0.12341 against 0.12342, holds" in judge(Claim("a", 0.12341, 0.12342)).sentence
    assert not judge(Claim("a", float("nan"), 0.5)).holds


def test_every_claim_both_ways():
    assert [verdict.holds for verdict in verdicts(WELL)] == [True] * 13
    assert [verdict.holds for verdict in verdicts(BADLY)] == [False] * 13
    sentences = [verdict.sentence for verdict in verdicts(WELL)]
    assert len(set(sentences)) == 13
    assert sentences[0] == (
        "Sparse inversion's gradient per image is smaller than dense's (mean norm): "
        "0.1 against 1, holds here."
    )
    assert "top eigenvalue): 2 against 3, holds here." in sentences[10]
    assert "nats): 0.2 against 0.7, holds here." in sentences[11]


def test_claims_without_figures_are_left_out():
    alone = replace(WELL, gradients=None, students={"run": STEADY})
    assert all(line.sentence.startswith("With relabelling") for line in verdicts(alone))
    blind = {name: replace(one, gap=None) for name, one in WELL.students.items()}
    assert len(verdicts(replace(WELL, students=blind))) == 11


def test_a_diagnosis_is_plain_when_asked():
    table = WELL.to_dict()
    expected = {"value": -2.0, "iterations": 9, "converged": True}
    assert table["students"]["run"]["curvature"] == expected
    assert table["gradients"]["sparse"]["norms"] == (0.1,)
