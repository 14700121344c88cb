"""The inversion loop against a slow one on whole images, and what must stay still."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fedmitr_app.inversion import Schedule, invert_batch
from fedmitr_app.inversion.flops import step_flops
from fedmitr_app.inversion.losses import cross_entropy
from fedmitr_app.inversion.patch_adam import PatchAdam
from fedmitr_app.inversion.views import draw_roll_flip
from fedmitr_app.models import InputSpec, packing
from fedmitr_app.teacher import Teacher
from fedmitr_app.utils.randomness import generator
from tests.helpers.tiny import (
    CLASSES,
    SPEC,
    inversion_config,
    random_images,
    random_targets,
    tiny_teacher,
    tiny_vit,
)

BATCH, SIZE, PATCH, GRID = 3, 16, 4, 4
WIDTH = 1 / 0.3  # of the valid range of tiny.SPEC's pixels


def invert(config, teacher=None, batch=BATCH, targets=None, seed=0, **more):
    targets = random_targets(batch) if targets is None else targets
    rng = generator(seed, "test")
    teacher = teacher or tiny_teacher()
    return invert_batch(teacher, random_images(batch), targets, config, rng, **more)


def windows(image: torch.Tensor, index: int) -> torch.Tensor:
    row, col = PATCH * (index // GRID), PATCH * (index % GRID)
    return image[:, row : row + PATCH, col : col + PATCH]


def slow_total_variation(images: torch.Tensor) -> torch.Tensor:
    """Differentiable, to let autograd check the gradient that the loop writes out."""
    bottom, top = images[..., 1:, :], images[..., :-1, :]
    pairs = [
        (bottom, top),
        (images[..., 1:], images[..., :-1]),
        (bottom[..., :-1], top[..., 1:]),
        (bottom[..., 1:], top[..., :-1]),
    ]
    return sum((a - b).flatten(1).norm(dim=1) for a, b in pairs)


def slow_inversion(teacher: Teacher, config, targets: torch.Tensor, rng: torch.Generator):
    """One image at a time would draw other views; so: whole images, whole rolls, loops.

    Patches are dropped from the teacher's view by index only where :class:`PatchViT` is
    tested to do it right; everything else here is written anew.
    """
    images = random_images(len(targets))
    low, high = (0 - 0.4) / 0.3, (1 - 0.4) / 0.3
    mean, square = torch.zeros_like(images), torch.zeros_like(images)
    alive = [list(range(GRID**2)) for _ in images]
    density = None
    for iteration in range(config.iterations):
        if iteration in (2, 5) and config.schedule == "sparse":
            keep = int(len(alive[0]) * 0.7)
            for image, patches in enumerate(alive):
                ranked = sorted(patches, key=lambda index: -density[image][index])
                alive[image] = sorted(ranked[:keep])
        views = draw_roll_flip(len(images), SIZE, config.roll, config.flip, rng)
        images.requires_grad_()
        loss, density = torch.zeros((), dtype=torch.float64), []
        for image in range(len(images)):
            down, right, flip = (int(part[image]) for part in views)
            view = images[image].roll((down, right), dims=(1, 2))
            view = view.flip(2) if flip else view
            # An alive patch goes to the nearest place, half a patch rounding up.
            places = {}
            for index in alive[image]:
                row = (index // GRID + (down + PATCH // 2) // PATCH) % GRID
                col = (index % GRID + (right + PATCH // 2) // PATCH) % GRID
                places[index] = row * GRID + (GRID - 1 - col if flip else col)
            order = torch.tensor([list(places.values())])
            seen = [model(view[None], order, attention=True) for model in teacher.models]
            combined = teacher.combine_logits(torch.stack([output.logits for output in seen]))
            loss = loss + cross_entropy(combined, targets[image : image + 1]).sum()
            loss = loss + config.tv * slow_total_variation(images[image : image + 1]).sum()
            shares = (teacher.class_weights / teacher.class_weights.sum(0)) @ targets[image]
            attention = sum(s * out.cls_attn[0] for s, out in zip(shares / shares.sum(), seen))
            density.append(dict(zip(places, attention.tolist())))
        (grad,) = torch.autograd.grad(loss, images)
        images = images.detach()
        mean = config.beta1 * mean + (1 - config.beta1) * grad
        square = config.beta2 * square + (1 - config.beta2) * grad**2
        step = mean / (1 - config.beta1 ** (iteration + 1))
        step = step / ((square / (1 - config.beta2 ** (iteration + 1))).sqrt() + 1e-8)
        moved = (images - config.learning_rate * WIDTH * step).clamp(low, high)
        for image, patches in enumerate(alive):
            for index in patches:
                windows(images[image], index).copy_(windows(moved[image], index))
    return images, torch.tensor(alive)


@pytest.mark.parametrize("combine", ["mean-logits", "prior-confidence"])
@pytest.mark.parametrize("schedule", ["dense", "sparse"])
def test_the_loop_equals_the_slow_one(schedule, combine):
    config, teacher = inversion_config(schedule=schedule), tiny_teacher(combine)
    found = invert(config, teacher)
    images, alive = slow_inversion(teacher, config, random_targets(BATCH), generator(0, "test"))
    assert torch.equal(found.keep_idx, alive)
    torch.testing.assert_close(found.images, images, rtol=1e-6, atol=1e-6)


def test_dense_steps_equal_torchs_adam():
    config = inversion_config(schedule="dense", roll=0.0, flip=0.0, learning_rate=0.01)
    teacher, targets = tiny_teacher(), random_targets(BATCH)
    images = random_images(BATCH).requires_grad_()
    adam = torch.optim.Adam([images], lr=0.01 * WIDTH, betas=(config.beta1, config.beta2))
    for _ in range(config.iterations):
        weighted = teacher.class_weights / teacher.class_weights.sum(0)
        logits = sum(w * model.vit(images) for w, model in zip(weighted, teacher.models))
        loss = cross_entropy(logits, targets) + config.tv * slow_total_variation(images)
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
        with torch.no_grad():
            images.clamp_(-0.4 / 0.3, 0.6 / 0.3)
    torch.testing.assert_close(invert(config).images, images.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", ["sparse", "random"])
@pytest.mark.parametrize("tv", [0.0, 0.5])
def test_stopped_patches_are_bit_identical_afterwards(schedule, tv):
    # The same draws up to a stop: what was stopped by then may never move again.
    config = inversion_config(schedule=schedule, tv=tv, iterations=9)
    final, moved = invert(config), 0
    for stop in (2, 5):
        stops = tuple(earlier for earlier in (2.0, 5.0) if earlier < stop)
        early = invert(inversion_config(schedule=schedule, tv=tv, iterations=stop, stops=stops))
        later = invert(
            inversion_config(
                schedule=schedule, tv=tv, iterations=stop + 1, stops=(*stops, float(stop))
            )
        )
        for image in range(BATCH):
            for index in range(GRID**2):
                before = windows(early.images[image], index)
                if index not in later.keep_idx[image]:
                    assert torch.equal(windows(final.images[image], index), before)
                else:
                    moved += not torch.equal(windows(final.images[image], index), before)
    assert moved > 0


@pytest.mark.parametrize("loss", ["ensemble", "per-teacher"])
@pytest.mark.parametrize("schedule", ["dense", "sparse"])
def test_a_batch_equals_its_images_one_by_one(schedule, loss):
    config = inversion_config(schedule=schedule, loss=loss, roll=0.0, flip=0.0)
    teacher, starts, targets = tiny_teacher(), random_images(4), random_targets(4)
    whole = invert_batch(teacher, starts, targets, config, generator(0))
    for one in range(4):
        rows = slice(one, one + 1)
        apart = invert_batch(teacher, starts[rows], targets[rows], config, generator(1))
        torch.testing.assert_close(apart.images, whole.images[rows], rtol=1e-7, atol=1e-7)
        assert torch.equal(apart.keep_idx, whole.keep_idx[rows])


@pytest.mark.parametrize("changes", [{"loss": "per-teacher"}, {"gradient": "frugal"}, {}])
def test_an_image_is_not_moved_by_clients_that_do_not_serve_it(changes):
    config = inversion_config(**changes)
    members = torch.tensor([[True, True, False], [True, False, True], [False, True, True]])
    before = invert(config, members=members)
    teacher = tiny_teacher()
    other = (*teacher.models[:2], tiny_vit(50).requires_grad_(False))
    after = invert(config, Teacher(other, teacher.combine, teacher.class_weights), members=members)
    assert torch.equal(before.images[0], after.images[0])
    assert torch.equal(before.keep_idx[0], after.keep_idx[0])
    assert not torch.equal(before.images[1], after.images[1])


def test_frugal_and_joint_make_the_same_images():
    joint, other = (invert(inversion_config(gradient=way)) for way in ("joint", "frugal"))
    torch.testing.assert_close(other.images, joint.images, rtol=1e-7, atol=1e-7)


def test_pixels_stay_in_the_valid_range_per_channel():
    spec = InputSpec(size=16, channels=3, mean=(0.2, 0.5, 0.8), std=(0.1, 0.2, 0.3))
    models = tuple(tiny_vit(k, spec=spec).requires_grad_(False) for k in range(2))
    teacher = Teacher(models, "mean-logits", torch.ones(2, CLASSES, dtype=torch.float64))
    config = inversion_config(learning_rate=50.0, schedule="dense")
    starts = random_images(2, spec=spec)
    found = invert_batch(teacher, starts, random_targets(2), config, generator(0)).images
    low, high = spec.pixel_range(found)
    assert ((found >= low) & (found <= high)).all()
    for channel in range(3):
        assert found[:, channel].min() == low[0, channel]
        assert found[:, channel].max() == high[0, channel]


def test_curves_tell_every_iteration():
    config, points = inversion_config(), []
    curves = invert(config, on_step=points.append).curves
    assert curves["alive"] == [16, 16, 11, 11, 11, 7, 7, 7]
    assert curves["alive"] == Schedule.build(config).counts(16, 8)
    for name, curve in curves.items():
        assert [float(point[name]) for point in points] == curve
    assert all(0 < share < 1 for share in curves["confidence"])


def test_the_target_grows_likelier():
    config = inversion_config(iterations=30, learning_rate=0.06, tv=0.0, roll=0.0, flip=0.0)
    hard = torch.eye(CLASSES, dtype=torch.float64)[:BATCH]
    curves = invert(config, targets=hard).curves
    assert curves["confidence"][-1] > curves["confidence"][0] + 0.2
    assert curves["loss"][-1] < curves["loss"][0]


def test_the_starts_and_the_teacher_are_left_alone():
    starts, teacher = random_images(2), tiny_teacher()
    before = starts.clone(), [p.clone() for m in teacher.models for p in m.parameters()]
    invert_batch(teacher, starts, random_targets(2), inversion_config(), generator(0))
    assert torch.equal(starts, before[0])
    after = [p for m in teacher.models for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before[1]))
    assert all(parameter.grad is None for parameter in after)


def test_without_an_iteration_images_stay_and_no_patch_survives():
    found = invert(inversion_config(iterations=0))
    assert torch.equal(found.images, random_images(BATCH))
    assert found.keep_idx.shape == (BATCH, 0)
    assert found.curves == {"loss": [], "confidence": [], "alive": []}


def test_the_generator_alone_decides():
    config = inversion_config(schedule="random")
    torch.manual_seed(1)
    one = invert(config)
    torch.manual_seed(2)
    same, other = invert(config), invert(config, seed=1)
    assert torch.equal(one.images, same.images) and torch.equal(one.keep_idx, same.keep_idx)
    assert not torch.equal(one.images, other.images)


# --- the optimiser


def test_patch_adam_equals_torchs_adam():
    config = inversion_config(learning_rate=0.1, beta1=0.6, beta2=0.9)
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(2, 5, 3, generator=rng, dtype=torch.float64)
    ours, theirs = PatchAdam(start.clone(), config, SPEC), start.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.1 * WIDTH, betas=(0.6, 0.9))
    for _ in range(7):
        grad = torch.randn(start.shape, generator=rng, dtype=torch.float64)
        theirs.grad = grad
        adam.step()
        torch.testing.assert_close(ours.step(grad), theirs.detach())


def test_a_step_moves_the_same_share_of_each_channels_range():
    spec = InputSpec(size=16, channels=3, mean=(0.2, 0.5, 0.8), std=(0.1, 0.2, 0.3))
    config = inversion_config(learning_rate=0.1)
    adam = PatchAdam(torch.zeros(2, 5, 12, dtype=torch.float64), config, spec)
    signs = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0)).sign().double()
    for number in (1, 2):  # of gradients that are all as large every step has size 1
        moved = adam.step(signs).unflatten(2, (3, 4)) / number
        for channel, deviation in enumerate(spec.std):
            expected = -0.1 / deviation * signs.unflatten(2, (3, 4))[:, :, channel]
            torch.testing.assert_close(moved[:, :, channel], expected, rtol=1e-5, atol=0)


def test_a_range_of_two_gives_the_bits_of_the_rate_times_two():
    spec = InputSpec(size=16, channels=3, mean=(0.5,), std=(0.5,))
    start, grad = torch.zeros(2, 5, 12), torch.randn(2, 5, 12)
    ours = PatchAdam(start.clone(), inversion_config(learning_rate=0.015), spec).step(grad)
    theirs = start.clone().requires_grad_()
    theirs.grad = grad
    torch.optim.Adam([theirs], lr=0.03, betas=(0.5, 0.99), fused=True).step()
    assert torch.equal(ours, theirs.detach())


def test_patches_that_stay_keep_their_momentum():
    config, rng = inversion_config(), torch.Generator().manual_seed(0)
    grads = torch.randn(6, 2, 5, 3, generator=rng, dtype=torch.float64)
    keep = torch.tensor([[0, 3], [2, 4]])
    dense, sparse = (
        PatchAdam(torch.zeros(2, 5, 3, dtype=torch.float64), config, SPEC) for _ in range(2)
    )
    for number, grad in enumerate(grads):
        if number == 3:
            sparse.keep(keep)
        expected = dense.step(grad)
        kept = torch.stack([row[index] for row, index in zip(grad, keep)])
        found = sparse.step(grad if number < 3 else kept)
    for image in range(2):
        torch.testing.assert_close(found[image], expected[image][keep[image]])


@pytest.mark.parametrize("ensemble", ["loop", "stacked"])
@pytest.mark.parametrize("members", [None, [[1, 1, 0], [0, 1, 1], [1, 0, 1]]])
def test_a_step_is_one_forward_and_one_input_gradient_and_nothing_more(
    monkeypatch, members, ensemble
):
    """Counted by torch: of weights no gradient, of stopped patches no product, ever."""
    monkeypatch.setattr(packing, "FEW_TOKENS", 0)  # a row's images would be counted as one
    config, teacher = inversion_config(ensemble=ensemble), tiny_teacher()
    served = 3 * BATCH
    if members is not None:
        members = torch.tensor(members).bool()
        served = int(members.sum())
    with FlopCounterMode(display=False) as counter:
        invert(config, teacher, members=members)
    counts = Schedule.build(config).counts(GRID**2, config.iterations)
    assert len(set(counts)) == 3
    single = tiny_vit(0, torch.float32).requires_grad_(False)
    expected = served * sum(step_flops(single, alive) for alive in counts)
    filled = 12 / 6 if ensemble == "stacked" and members is not None else 1  # see EVEN
    # Beside them: who knows the targets, at a stop; norms absorbed, once.
    assert filled * expected < counter.get_total_flops() < 1.003 * filled * expected
