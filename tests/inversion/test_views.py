"""Zoomed and coloured views, and several a step, against pixels read one by one and autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmitr_app.inversion import invert_batch
from fedmitr_app.inversion.invert import pixel_gradient
from fedmitr_app.inversion.losses import cross_entropy
from fedmitr_app.inversion.objective import Objective
from fedmitr_app.inversion.patches import read_patches
from fedmitr_app.inversion.state import InversionState
from fedmitr_app.inversion.total_variation import total_variation
from fedmitr_app.inversion.views import (
    RollFlip,
    View,
    Zoom,
    apply_roll_flip,
    draw_roll_flip,
    draw_view,
    view_patches,
)
from fedmitr_app.utils.randomness import generator
from tests.helpers.tiny import (
    SPEC,
    inversion_config,
    random_images,
    random_targets,
    tiny_teacher,
)

SIZE, PATCH, TOTAL = 16, 4, 16


def a_view(down=0, right=0, flip=False, scale=1.0, row=0.5, col=0.5, colour=None) -> View:
    roll_flip = RollFlip(torch.tensor([down]), torch.tensor([right]), torch.tensor([flip]))
    zoom = Zoom(
        torch.tensor([scale], dtype=torch.float64),
        torch.tensor([row], dtype=torch.float64),
        torch.tensor([col], dtype=torch.float64),
        torch.zeros(1, TOTAL),
    )
    return View(roll_flip, zoom, colour)


def seen_by_hand(image: torch.Tensor, view: View) -> torch.Tensor:
    """Roll, read each pixel of the zoomed image from its four neighbours, mirror, colour."""
    down, right, flip = (int(part[0]) for part in view.roll_flip)
    rolled = image.roll((down, right), dims=(1, 2))
    scale, row, col = (float(part[0]) for part in view.zoom[:3])
    pixels = []
    for at_row in range(SIZE):
        for at_col in range(SIZE):
            y = row * SIZE + (at_row + 0.5 - row * SIZE) / scale - 0.5
            x = col * SIZE + (at_col + 0.5 - col * SIZE) / scale - 0.5
            top, left = math.floor(y), math.floor(x)
            value = 0
            for r, by_row in ((top, top + 1 - y), (top + 1, y - top)):
                for c, by_col in ((left, left + 1 - x), (left + 1, x - left)):
                    value = value + by_row * by_col * rolled[:, r % SIZE, c % SIZE]
            pixels.append(value)
    seen = torch.stack(pixels, dim=1).reshape(-1, SIZE, SIZE)
    seen = seen.flip(2) if flip else seen
    if view.colour is not None:
        contrast, shift = (part[0].reshape(-1, 1, 1) for part in view.colour)
        seen = seen * contrast + shift
    return seen


def patchify(images: torch.Tensor) -> torch.Tensor:
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


ANY_VIEW = st.builds(
    a_view,
    st.integers(-SIZE, SIZE),
    st.integers(-SIZE, SIZE),
    st.booleans(),
    st.floats(0.5, 2.0),
    st.floats(0, 1),
    st.floats(0, 1),
)


@settings(max_examples=25)
@given(ANY_VIEW, st.integers(1, TOTAL), st.randoms(use_true_random=False))
def test_what_is_shown_of_some_patches_is_part_of_the_whole_zoomed_image(view, count, random):
    alive = torch.tensor([sorted(random.sample(range(TOTAL), count))])
    images = random_images(1)
    seen = view_patches(view, alive, SPEC, PATCH, zoomed=True)
    whole = patchify(seen_by_hand(images[0], view)[None])[0]
    assert len(set(seen.positions[0].tolist())) == count
    torch.testing.assert_close(seen.read(images)[0], whole[seen.positions[0]])


@settings(max_examples=25)
@given(ANY_VIEW, st.integers(1, TOTAL), st.randoms(use_true_random=False))
def test_the_patches_that_show_most_of_what_moves_are_taken(view, count, random):
    alive = torch.tensor([sorted(random.sample(range(TOTAL), count))])
    mask = torch.zeros(1, TOTAL, PATCH**2, dtype=torch.float64)
    mask[0, alive[0]] = 1
    mask = F.fold(mask.transpose(1, 2), (SIZE, SIZE), PATCH, stride=PATCH)
    shares = patchify(seen_by_hand(mask[0], view)[None])[0].mean(1)
    taken = view_patches(view, alive, SPEC, PATCH, zoomed=True).positions[0]
    torch.testing.assert_close(shares[taken].sort().values, shares.sort().values[-count:])


@given(st.integers(-SIZE, SIZE), st.integers(-SIZE, SIZE), st.booleans(), st.floats(0, 1))
def test_a_scale_of_one_is_the_roll_itself(down, right, flip, centre):
    view, images = a_view(down, right, flip, 1.0, centre, 1 - centre), random_images(1)
    seen = view_patches(view, torch.arange(TOTAL)[None], SPEC, PATCH, zoomed=True)
    expected = patchify(apply_roll_flip(images, view.roll_flip))
    torch.testing.assert_close(seen.read(images), expected, rtol=1e-9, atol=1e-9)


def test_chance_decides_between_patches_that_show_as_much():
    view, alive = a_view(scale=4.0), torch.tensor([[5, 6, 9, 10]])  # the middle fills all
    rng, found = generator(0), set()
    for _ in range(20):
        view.zoom.ties.copy_(torch.rand(1, TOTAL, generator=rng))
        found |= {tuple(view_patches(view, alive, SPEC, PATCH, zoomed=True).positions[0].tolist())}
    assert len(found) > 5


def test_zooms_and_colours_stay_within_reach_and_use_it():
    config = inversion_config(zoom=0.5, colour=0.7)
    view = draw_view(4000, SPEC, TOTAL, config, generator(0))
    for values, low, high in (
        (view.zoom.scale, 1 / 1.5, 1.5),
        (view.zoom.row, 0, 1),
        (view.zoom.col, 0, 1),
        (view.colour.contrast, math.exp(-0.7), math.exp(0.7)),
        (view.colour.shift, -0.7, 0.7),
    ):
        assert low <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high
    assert (view.zoom.scale > 1).float().mean() == pytest.approx(0.5, abs=0.03)


def test_without_zoom_and_colour_nothing_more_is_drawn():
    one, other = generator(0), generator(0)
    view = draw_view(3, SPEC, TOTAL, inversion_config(), one)
    roll_flip = draw_roll_flip(3, SIZE, 0.25, 0.5, other)
    assert all(torch.equal(a, b) for a, b in zip(view.roll_flip, roll_flip))
    assert view.zoom is None and view.colour is None
    assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("count", [5, TOTAL])
@pytest.mark.parametrize("changes", [{"zoom": 0.5}, {"colour": 0.8}, {"zoom": 0.5, "colour": 0.8}])
def test_the_gradient_is_autograds_through_whole_images(changes, count):
    config, teacher = inversion_config(**changes), tiny_teacher()
    images, targets = random_images(3), random_targets(3)
    alive = torch.stack(
        [torch.randperm(TOTAL, generator=generator(k))[:count].sort().values for k in range(3)]
    )
    state = InversionState(images, config, SPEC, PATCH)
    state.stop(alive)
    rng = generator(1)
    views = [draw_view(3, SPEC, TOTAL, config, rng) for _ in range(2)]
    found = pixel_gradient(Objective(teacher, targets, config), state, views)
    moving = images.clone().requires_grad_()
    loss = torch.zeros(3, dtype=torch.float64)
    for view in views:
        for image in range(3):
            one = View(*(p and type(p)(*(v[image : image + 1] for v in p)) for p in view))
            positions = view_patches(one, alive[image : image + 1], SPEC, PATCH, True).positions
            if one.zoom is None:
                one = one._replace(zoom=a_view().zoom)
            seen = seen_by_hand(moving[image], one)[None]
            logits = [model(seen, positions).logits for model in teacher.models]
            combined = teacher.combine_logits(torch.stack(logits))
            loss[image] = loss[image] + cross_entropy(combined, targets[image : image + 1])[0] / 2
    (grad,) = torch.autograd.grad(loss.sum(), moving)
    value, slope = total_variation(images)
    expected_loss = loss.detach() + config.tv * value
    torch.testing.assert_close(found.loss, expected_loss, rtol=1e-5, atol=1e-5)
    smooth = config.tv * read_patches(slope, state.own)
    expected = torch.stack([patchify(grad)[k][alive[k]] for k in range(3)]) + smooth
    torch.testing.assert_close(found.grad, expected, rtol=1e-4, atol=1e-6)


CHANGES = [{"zoom": 0.3}, {"colour": 0.5}, {"views": 3}, {"zoom": 0.3, "colour": 0.5, "views": 2}]


@pytest.mark.parametrize("changes", CHANGES)
def test_stopped_patches_stay_and_others_move(changes):
    starts, targets = random_images(3), random_targets(3)

    def run(**more):
        config = inversion_config(**changes, **more)
        return invert_batch(tiny_teacher(), starts, targets, config, generator(0))

    whole, early = run(iterations=8), run(iterations=6)
    stopped = torch.ones(3, TOTAL, dtype=torch.bool).scatter_(1, whole.keep_idx, False)
    after, before = patchify(whole.images), patchify(early.images)
    assert torch.equal(after[stopped], before[stopped])
    assert not torch.isclose(after[~stopped], before[~stopped]).all(1).any()
    plain = invert_batch(tiny_teacher(), starts, targets, inversion_config(), generator(0))
    assert not torch.equal(plain.images, whole.images)


def test_several_equal_views_are_one():
    still = {"roll": 0.0, "flip": 0.0}
    found = [
        invert_batch(
            tiny_teacher(),
            random_images(2),
            random_targets(2),
            inversion_config(views=views, **still),
            generator(0),
        )
        for views in (1, 3)
    ]
    torch.testing.assert_close(found[0].images, found[1].images, rtol=1e-6, atol=1e-6)
    assert torch.equal(found[0].keep_idx, found[1].keep_idx)
    for name, curve in found[0].curves.items():
        assert curve == pytest.approx(found[1].curves[name])


def test_which_patches_stop_is_read_off_a_view_that_is_not_zoomed():
    alive = torch.tensor([[2, 7, 11]])
    seen = view_patches(a_view(3, 5, True, 1.4), alive, SPEC, PATCH, zoomed=False)
    plain = view_patches(
        View(a_view(3, 5, True).roll_flip), torch.tensor([[2, 7, 11]]), SPEC, PATCH, zoomed=True
    )
    assert torch.equal(seen.positions, plain.positions)
    assert torch.equal(seen.read(random_images(1)), plain.read(random_images(1)))
