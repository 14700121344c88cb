"""Images that are finished early: each is what a run of as many iterations would have made."""

import pytest
import torch

from fedmitr_app.inversion import invert_batch, variation
from fedmitr_app.inversion.reached import STEPS_BETWEEN_LOOKS, STEPS_IN_A_ROW
from fedmitr_app.randomness import generator
from tests.inversion.tiny import (
    inversion_config,
    random_images,
    random_targets,
    tiny_teacher,
)

BATCH, ITERATIONS = 6, 25


MEMBERS = torch.tensor([[True, True, False], [False, True, True]]).repeat(3, 1).T


def invert(iterations=ITERATIONS, batch=BATCH, members=None, **changes):
    """Roll, flips and schedule draw from one generator: a shorter run's are the same."""
    config = inversion_config(iterations=iterations, **changes)
    rng, starts = generator(0, "test"), random_images(batch)
    points, targets = [], random_targets(batch)
    found = invert_batch(
        tiny_teacher(), starts, targets, config, rng, members=members, on_step=points.append
    )
    return found, points


def distances(iterations: int, **changes) -> list[list[float]]:
    """KL of each image's target and the teacher's answer at each step, image by image.

    From the loss without its total variation, which is the cross-entropy.
    """
    rows = []
    for image in range(BATCH):
        config = inversion_config(iterations=iterations, roll=0.0, flip=0.0, tv=0.0, **changes)
        one = slice(image, image + 1)
        target = random_targets(BATCH)[one]
        made = invert_batch(
            tiny_teacher(), random_images(BATCH)[one], target, config, generator(0, "test")
        )
        entropy = -sum(float(p) * float(p.log()) for p in target[0])
        rows.append([loss - entropy for loss in made.curves["loss"]])
    return rows


def expected_steps(rows: list[list[float]], nats: float, first: int) -> list[int]:
    steps = []
    for row in rows:
        done, streak = len(row), 0
        for step, distance in enumerate(row):
            streak = streak + 1 if distance <= nats and step >= first else 0
            if (step + 1) % STEPS_BETWEEN_LOOKS == 0 and streak >= STEPS_IN_A_ROW:
                done = step + 1
                break
        steps.append(done)
    return steps


@pytest.mark.parametrize(("schedule", "last_stop"), [("sparse", 5), ("dense", 0)])
def test_an_image_ends_as_it_was_when_it_was_finished(schedule, last_stop):
    still = {"roll": 0.0, "flip": 0.0, "tv": 0.0, "schedule": schedule}
    rows = distances(ITERATIONS, schedule=schedule)
    ends = sorted(row[14] for row in rows)
    nats = (ends[2] + ends[3]) / 2
    steps = expected_steps(rows, nats, last_stop)
    assert len(set(steps)) > 1  # else nothing is shown
    found, points = invert(**still, early_stop=nats)
    for at, point in enumerate(points):
        assert round(point["moving"] * BATCH) == sum(step > at for step in steps)
    for image, step in enumerate(steps):
        shorter, _ = invert(step, **still)
        torch.testing.assert_close(found.images[image], shorter.images[image], rtol=1e-6, atol=1e-6)
        assert torch.equal(found.keep_idx[image], shorter.keep_idx[image])


@pytest.mark.parametrize("windowed_below", [0.0, 9.0])
def test_what_is_an_images_stays_its_own_when_others_are_finished(monkeypatch, windowed_below):
    """Views, clients, neighbours: those that go on are the ones of a run without the rule."""
    monkeypatch.setattr(variation, "WINDOWED_BELOW", windowed_below)
    found, points = invert(early_stop=0.3, members=MEMBERS)
    whole, _ = invert(members=MEMBERS)
    moving = [round(point["moving"] * BATCH) for point in points]
    assert 0 < moving[-1] < BATCH
    same = [
        torch.allclose(one, other, rtol=1e-6, atol=1e-6)
        for one, other in zip(found.images, whole.images, strict=True)
    ]
    assert sum(same) == moving[-1]
    assert torch.equal(found.keep_idx, whole.keep_idx)


@pytest.mark.parametrize("windowed_below", [0.0, 9.0])
def test_nothing_is_left_to_do_when_all_are_finished(monkeypatch, windowed_below):
    monkeypatch.setattr(variation, "WINDOWED_BELOW", windowed_below)
    found, points = invert(early_stop=100.0)
    assert [point["moving"] for point in points] == [1.0] * 10 + [0.0] * 15
    shorter, _ = invert(10)
    torch.testing.assert_close(found.images, shorter.images)
    assert len({float(point["loss"]) for point in points[10:]}) == 1


def test_without_the_rule_every_image_takes_every_step():
    assert {point["moving"] for point in invert()[1]} == {1.0}
