"""What images are inverted for, which candidates they begin as, and who serves them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmitr_app.inversion.targets import draw_members, draw_targets, pick_candidates
from fedmitr_app.teacher import Teacher
from tests.helpers.tiny import CLASSES, random_targets, tiny_teacher

COUNTS, CLASS_COUNTS, SEEDS = st.integers(1, 30), st.integers(1, 7), st.integers(0, 1000)


def draw(kind: str, count: int, classes: int, seed: int) -> torch.Tensor:
    return draw_targets(kind, count, classes, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["balanced", "mixed"])
@given(count=COUNTS, classes=CLASS_COUNTS, seed=SEEDS)
def test_every_kind_draws_class_probabilities(kind, count, classes, seed):
    targets = draw(kind, count, classes, seed)
    assert targets.shape == (count, classes) and targets.min() >= 0
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    assert torch.equal(targets, draw(kind, count, classes, seed))


@given(COUNTS, CLASS_COUNTS, SEEDS)
def test_balanced_targets_are_one_class_each_all_alike_often(count, classes, seed):
    targets = draw("balanced", count, classes, seed)
    assert set(targets.flatten().tolist()) <= {0.0, 1.0}
    per_class = targets.sum(0)
    assert per_class.max() - per_class.min() <= 1


@given(COUNTS, st.integers(2, 7), SEEDS)
def test_mixed_targets_have_two_classes(count, classes, seed):
    targets = draw("mixed", count, classes, seed)
    assert ((targets > 0).sum(1) == 2).all()


def test_every_two_classes_get_mixed():
    pairs = {tuple(row.nonzero().flatten().tolist()) for row in draw("mixed", 400, 4, 0)}
    assert pairs == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}


# --- members


def members_of(teacher: Teacher, targets: torch.Tensor, per_image: int, seed: int = 0):
    return draw_members(teacher, targets, per_image, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("per_image", [1, 2])
def test_each_image_gets_as_many_clients_as_asked_for(per_image):
    members = members_of(tiny_teacher(), random_targets(20), per_image)
    assert members.shape == (3, 20) and members.dtype == torch.bool
    assert members.sum(0).tolist() == [per_image] * 20


@pytest.mark.parametrize("per_image", [0, 3, 9])
def test_no_subset_when_everyone_serves(per_image):
    assert members_of(tiny_teacher(), random_targets(4), per_image) is None


def test_clients_are_drawn_by_what_they_know_of_the_target():
    weights = torch.ones(3, CLASSES, dtype=torch.float64)
    weights[:, 2] = torch.tensor([6.0, 3.0, 1.0])
    teacher = Teacher(tiny_teacher().models, "label-aware", weights)
    targets = torch.eye(CLASSES)[[2] * 4000]
    shares = members_of(teacher, targets, 1).float().mean(1)
    assert shares.tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


def test_clients_that_know_nothing_of_the_target_fill_the_rest():
    weights = torch.zeros(3, CLASSES, dtype=torch.float64)
    weights[1] = 1
    teacher = Teacher(tiny_teacher().models, "label-aware", weights)
    members = members_of(teacher, torch.eye(CLASSES)[[0] * 200], 2)
    assert members[1].all() and members[0].any() and members[2].any()


def test_clients_that_were_never_taught_the_target_serve_only_where_nobody_else_is_left():
    """Their head's row is zero, as one-vs-all leaves it; the teacher weighs all alike."""
    teacher = tiny_teacher("num-examples")
    teacher = Teacher(teacher.models, "num-examples", torch.ones(3, CLASSES))
    with torch.no_grad():
        for client in (0, 2):
            teacher.models[client].vit.head.weight[1] = 0.0
    targets = torch.eye(CLASSES)[[1] * 300 + [2] * 300]
    one, two = (members_of(teacher, targets, count) for count in (1, 2))
    assert one[1, :300].all() and one[:, 300:].any(1).all()
    assert two[1, :300].all() and two[0, :300].any() and two[2, :300].any()
    with torch.no_grad():
        for model in teacher.models:
            model.vit.head.weight[1] = 0.0
    untaught = members_of(replace(teacher), targets, 1)
    assert untaught[:, :300].any(1).all()


# --- starts


def greedy_by_hand(log_probs: list[list[float]], targets: list[list[float]]) -> list[int]:
    left, chosen = list(range(len(log_probs))), []
    for target in targets:
        fit = {index: sum(t * p for t, p in zip(target, log_probs[index]) if t) for index in left}
        best = max(left, key=lambda index: (fit[index], -index))
        left.remove(best)
        chosen.append(best)
    return chosen


@given(st.integers(1, 6), st.integers(0, 6), SEEDS)
def test_starts_are_picked_greedily_without_repeats(count, more, seed):
    rng = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(count + more, 4, generator=rng).log_softmax(-1)
    targets = draw("balanced", count, 4, seed)
    found = pick_candidates(log_probs, targets).tolist()
    assert found == greedy_by_hand(log_probs.tolist(), targets.tolist())
    assert len(set(found)) == count
