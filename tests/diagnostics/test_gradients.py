"""The inversion's gradient, dense against sparse."""

from dataclasses import replace

import pytest
import torch

from fedmitr_app.diagnostics.gradients import _figures, compare_gradients, over_views
from fedmitr_app.inversion import invert_batch
from fedmitr_app.inversion.losses import cross_entropy
from fedmitr_app.inversion.pool_shards import Assignment
from fedmitr_app.inversion.total_variation import total_variation
from fedmitr_app.inversion.views import apply_roll_flip, draw_roll_flip
from fedmitr_app.utils.randomness import generator
from tests.helpers.tiny import inversion_config, random_images, random_targets, tiny_teacher

CPU = torch.device("cpu")


def compared(**changes):
    config = inversion_config(**changes)
    teacher = tiny_teacher(dtype=torch.float32)
    return compare_gradients(teacher, config, images=4, seed=0, device=CPU, views=3)


def test_dense_and_sparse_agree_until_the_first_stop():
    found = compared()
    dense, sparse = found["dense"], found["sparse"]
    assert len(dense.norms) == len(sparse.norms) == 8
    assert dense.norms[:2] == sparse.norms[:2] and dense.variances[:2] == sparse.variances[:2]
    assert all(one != other for one, other in zip(dense.norms[2:], sparse.norms[2:]))


def test_the_figures_are_those_since_the_first_stop():
    found = compared()["sparse"]
    norms, variances = found.norms[2:], found.variances[2:]
    assert found.norm == pytest.approx(sum(norms) / 6)
    assert found.norm_variance == pytest.approx(sum(variances) / 6)
    spread = sum(value**0.5 / mean for mean, value in zip(norms, variances)) / 6
    assert found.norm_spread == pytest.approx(spread)


def test_what_is_left_out_are_the_figures_of_the_other_images():
    norms = torch.rand(6, 4, generator=generator(0)) + 1
    views = torch.rand(2, 4, generator=generator(1))
    found = _figures(norms, 2, (views[0], views[1]))
    for image in range(4):
        kept = [other for other in range(4) if other != image]
        rest = _figures(norms[:, kept], 2, (views[0][kept], views[1][kept]))
        for name, each in found.left_out.items():
            assert each[image] == pytest.approx(getattr(rest, name), rel=1e-5), name
    assert len(found.left_out) == 5


def test_a_run_whose_own_schedule_is_dense_is_compared_all_the_same():
    assert compared(schedule="dense") == compared(schedule="sparse") == compared()


def test_without_an_iteration_there_is_nothing_to_compare():
    assert compared(iterations=0) is None


def test_without_rolls_and_flips_nothing_varies_over_views():
    found = compared(roll=0.0, flip=0.0)
    for figures in found.values():
        assert figures.view_variance == pytest.approx(0.0, abs=1e-12)
        assert figures.view_spread == pytest.approx(0.0, abs=1e-9)


def test_the_variance_over_views_is_that_of_whole_images_differentiated_one_by_one():
    """Where no patch stops, by autograd through whole rolled images."""
    config = inversion_config(schedule="dense", iterations=1)
    teacher, starts, targets = tiny_teacher(), random_images(2), random_targets(2)
    inverted = invert_batch(teacher, starts, targets, config, generator(0))
    batch = Assignment(starts, targets, None)
    found = over_views(teacher, inverted, batch, config, generator(7), 5)
    rng, grads = generator(7), []
    for _ in range(5):
        views = draw_roll_flip(2, 16, config.roll, config.flip, rng)
        images = inverted.images.clone().requires_grad_()
        logits = [model(apply_roll_flip(images, views)).logits for model in teacher.models]
        combined = teacher.combine_logits(torch.stack(logits))
        loss = cross_entropy(combined, targets).sum()
        (grad,) = torch.autograd.grad(loss, images)
        grads.append(grad + config.tv * total_variation(inverted.images)[1])
    stacked = torch.stack(grads).flatten(2)
    variance, mean = stacked.var(0).sum(1), stacked.mean(0)
    torch.testing.assert_close(found[0], variance)
    torch.testing.assert_close(found[1], variance / mean.square().sum(1))


def test_listening_changes_nothing():
    config = replace(inversion_config(), iterations=4)
    heard = []

    def run(**more):
        starts, targets = random_images(2), random_targets(2)
        return invert_batch(tiny_teacher(), starts, targets, config, generator(0), **more)

    plain, listened = run(), run(on_gradient=lambda grad: heard.append(grad.shape))
    assert torch.equal(plain.images, listened.images) and plain.curves == listened.curves
    assert heard == [(2, 16, 16), (2, 16, 16), (2, 11, 16), (2, 11, 16)]
