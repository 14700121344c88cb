"""Sentences, all three ways; and what stays unsaid."""

import math
from dataclasses import replace

import pytest

from fedmitr_app.diagnostics import verdicts
from fedmitr_app.diagnostics.claims import Claim, judge
from fedmitr_app.diagnostics.error_bars import Error
from tests.helpers.diagnoses import (
    BADLY,
    STEADY,
    WELL,
    about,
)

WORDS = "Sparse is steadier than dense"


def told(ours, theirs, size, parts=10_000):
    return judge(Claim(WORDS, ours, theirs, Error(size, parts)))


def test_a_claim_is_one_sentence_with_both_figures_and_an_error():
    held = told(0.12, 0.31, 0.05)
    figures = "0.12 against 0.31 (difference -0.19, ± 0.098)"
    assert held.sentence == f"{WORDS}: {figures}, holds here." and held.holds is True
    assert (held.difference, held.half_width) == pytest.approx((-0.19, 0.098), rel=1e-3)
    failed = told(0.31, 0.12, 0.05)
    assert failed.sentence.endswith("(difference +0.19, ± 0.098), does not hold here.")
    assert failed.holds is False
    open_ = told(0.12, 0.31, 0.1)
    assert open_.sentence.endswith("± 0.2), can't be told here.") and open_.holds is None


def test_what_is_not_known_tells_nothing_and_a_near_tie_shows_enough_digits():
    assert told(0.5, 0.5, 0.0).holds is None
    assert "0.12341 against 0.12342 (" in told(0.12341, 0.12342, 0.0).sentence
    assert told(0.12341, 0.12342, 0.0).holds is True
    assert told(math.nan, 0.5, 0.0).holds is None
    for unknown in (told(0.1, 0.5, math.nan), told(0.1, 0.5, 0.1, parts=1)):
        assert unknown.holds is None
        assert "(difference -0.4, its error isn't known), can't be told here." in unknown.sentence


def test_fewer_parts_make_a_wider_interval():
    assert told(0.12, 0.31, 0.05, parts=8).holds is True
    assert told(0.12, 0.31, 0.05, parts=2).holds is None


def test_every_claim_both_ways():
    assert [verdict.holds for verdict in verdicts(WELL)] == [True] * 13
    assert [verdict.holds for verdict in verdicts(BADLY)] == [False] * 13
    sentences = [verdict.sentence for verdict in verdicts(WELL)]
    assert len(set(sentences)) == 13
    assert sentences[0].startswith(
        "Sparse inversion's gradient per image is smaller than dense's (mean norm): "
        "0.1 against 1 (difference -0.9, ± "
    )
    assert "top eigenvalue): 2 against 3 (" in sentences[10]
    assert "nats): 0.2 against 0.7 (" in sentences[11]


def test_students_share_their_test_images_and_not_their_pools():
    """What both students find hard of the test images is no part of the difference's error."""
    sentences = [verdict.half_width for verdict in verdicts(WELL)]
    wide = {name: about(0.5, 0.3) for name in ("test_accuracy", "test_loss")}
    shared = {
        name: replace(one, gap=replace(one.gap, left_out={**one.gap.left_out, **wide}))
        for name, one in WELL.students.items()
    }
    assert [v.half_width for v in verdicts(replace(WELL, students=shared))] == pytest.approx(
        sentences
    )
    wide = {name: about(0.5, 0.3) for name in ("pool_accuracy", "pool_loss")}
    own = {
        name: replace(one, gap=replace(one.gap, left_out={**one.gap.left_out, **wide}))
        for name, one in WELL.students.items()
    }
    assert [v.holds for v in verdicts(replace(WELL, students=own))][-2:] == [None, None]


def test_claims_without_figures_are_left_out():
    alone = replace(WELL, gradients=None, students={"run": STEADY})
    assert all(line.sentence.startswith("With relabelling") for line in verdicts(alone))
    blind = {name: replace(one, gap=None) for name, one in WELL.students.items()}
    assert len(verdicts(replace(WELL, students=blind))) == 11


def test_a_diagnosis_is_plain_when_asked():
    table = WELL.to_dict()
    expected = {"value": -2.0, "iterations": 9, "converged": True, "left_out": about(-2.0)}
    assert table["students"]["run"]["curvature"] == expected
    assert table["gradients"]["sparse"]["norms"] == (0.1,)
