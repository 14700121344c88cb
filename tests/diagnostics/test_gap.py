"""The gap on a case that a hand can work out."""

import math
from types import SimpleNamespace

import pytest
import torch

from fedmitr_app.diagnostics.gap import gap
from fedmitr_app.models import InputSpec

SPEC = InputSpec(size=1, channels=1, mean=(0.0,), std=(1.0,))


def answer(probabilities):
    """A model that reads an image's one pixel as the number of its answer."""
    rows = torch.tensor(probabilities).log()
    return lambda images: SimpleNamespace(logits=rows[(images.flatten() * 255).round().long()])


@pytest.mark.parametrize("batch_size", [1, 256])
def test_accuracy_and_loss_on_both_sides(batch_size):
    teacher = answer([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    student = answer([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0.125, 0.875]])
    pool = torch.tensor([0.0, 2.0]).reshape(2, 1, 1, 1) / 255  # the teacher says 0 and 0
    real = torch.tensor([0, 2, 3, 3], dtype=torch.uint8).reshape(4, 1, 1, 1)
    labels = torch.tensor([0, 0, 1, 0])
    found = gap(student, teacher, pool, real, labels, SPEC, 0, batch_size=batch_size)
    assert found.pool_accuracy == 0.5
    assert found.pool_loss == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert found.test_accuracy == 0.5
    parts = math.log(0.75) + math.log(0.25) + math.log(0.875) + math.log(0.125)
    assert found.test_loss == pytest.approx(-parts / 4)
    assert found.accuracy == 0.0
    # Without the one image of the pool that both agree on, and without the other.
    assert sorted(found.left_out["pool_accuracy"]) == [0.0, 1.0]
    assert sorted(found.left_out["test_accuracy"]) == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert found.loss == pytest.approx(found.test_loss - found.pool_loss)
