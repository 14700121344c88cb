"""The student's gradient over batches, against slow oracles."""

import math
from dataclasses import replace

import pytest
import torch

from fedmitr_app.config import DistillationConfig
from fedmitr_app.diagnostics.variance import LABELS, gradient_variance, variance_by_labels
from fedmitr_app.distillation.batches import draw_batch
from fedmitr_app.distillation.losses import class_loss, soft_label_loss
from fedmitr_app.inversion import PoolData
from fedmitr_app.utils.randomness import generator
from tests.helpers.tiny import (
    distillation_config,
    random_images,
    random_targets,
    tiny_teacher,
    tiny_vit,
)


def pool(survivors=6, dtype=torch.float64):
    mask = torch.zeros(9, 16, dtype=torch.bool)
    mask[:, :survivors] = True
    return PoolData(random_images(9, dtype=dtype), random_targets(9, dtype=dtype), mask)


def measured(config, data, batches=4):
    student, teacher = tiny_vit(8), tiny_teacher()
    return variance_by_labels(student, teacher, data, config, batches=batches, seed=0)


def test_the_variance_is_that_of_all_gradients_side_by_side():
    gradients = torch.randn(6, 50, generator=generator(0), dtype=torch.float64) + 3
    found = gradient_variance(gradients)
    total = sum(
        ((gradients[:, k] - gradients[:, k].mean()) ** 2).sum().item() / 5 for k in range(50)
    )
    assert found.total == pytest.approx(total)
    size = gradients.mean(0).square().sum().item()
    assert found.relative == pytest.approx(total / size)


@pytest.mark.parametrize("count", [3, 8, 19])
def test_what_is_left_out_are_the_figures_of_the_other_parts(count):
    gradients = torch.randn(count, 50, generator=generator(0), dtype=torch.float64) + 3
    found = gradient_variance(gradients)
    parts = min(count, 8)
    for part in range(parts):
        rest = torch.stack([row for number, row in enumerate(gradients) if number % 8 != part])
        total = float(rest.var(0).sum())
        assert found.left_out["total"][part] == pytest.approx(total)
        relative = total / float(rest.mean(0).square().sum())
        assert found.left_out["relative"][part] == pytest.approx(relative)
    assert len(found.left_out["total"]) == len(found.left_out["relative"]) == parts


def test_of_two_gradients_no_error_is_known():
    found = gradient_variance(torch.eye(2, dtype=torch.float64))
    assert found.total == pytest.approx(1.0)
    assert all(math.isnan(value) for values in found.left_out.values() for value in values)


def test_one_gradient_has_no_variance():
    with pytest.raises(ValueError, match="at least 2"):
        gradient_variance([torch.zeros(3)])


def slow_gradients(kind, config, data, batches):
    """Patch by patch, from the formula; backward instead of grad."""
    teacher, rng = tiny_teacher(), generator(0, "diagnosis", "batches")
    found = []
    for _ in range(batches):
        batch = draw_batch(data, config, rng)
        mask, targets = batch.mask, batch.targets
        student = tiny_vit(8)
        seen = student(batch.images, patch_logits=True)
        answer = teacher(batch.images, patch_logits=True)
        loss = class_loss(
            seen.logits, answer.logits, targets, config.temperature, config.hard
        ).mean()
        for image in range(len(mask)):
            for patch in range(16):
                logits = seen.patch_logits[image, patch]
                if kind == "none":
                    continue
                if kind == "hard" or mask[image, patch]:
                    term = -(targets[image] * logits.log_softmax(-1)).sum()
                else:
                    label = answer.patch_logits[image, patch]
                    term = config.gamma * soft_label_loss(logits, label, config.tau)
                loss = loss + config.beta * term / 16 / len(mask)
        loss.backward()
        found.append(torch.cat([value.grad.flatten() for value in student.parameters()]))
    return torch.stack(found)


@pytest.mark.parametrize("kind", LABELS)
def test_each_kind_of_label_is_what_it_says(kind):
    config = distillation_config(batch_size=3, relabel="token", beta=0.5)
    found = measured(config, pool(), batches=3)[kind]
    expected = gradient_variance(slow_gradients(kind, config, pool(), 3))
    assert found.total == pytest.approx(expected.total, rel=1e-6)
    assert found.relative == pytest.approx(expected.relative, rel=1e-6)


def test_where_every_token_survived_relabelling_is_the_pseudo_label():
    found = measured(distillation_config(), pool(survivors=16))
    assert found["relabel"].total == pytest.approx(found["hard"].total, rel=1e-6)
    assert found["none"].total != pytest.approx(found["hard"].total, rel=1e-3)


def test_a_run_without_token_term_is_measured_with_the_usual_one():
    usual = DistillationConfig()
    config = distillation_config(relabel="none", beta=0.0)
    explicit = replace(config, relabel=usual.relabel, beta=usual.beta)
    assert measured(config, pool()) == measured(explicit, pool())


def test_the_student_is_left_alone():
    student = tiny_vit(8)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    config = distillation_config(train="head")
    variance_by_labels(student, tiny_teacher(), pool(), config, batches=2, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.requires_grad for parameter in student.parameters())
