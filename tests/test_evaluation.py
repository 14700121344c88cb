"""Accuracy against a count by hand."""

import pytest
import torch

from fedmitr_app.evaluation import accuracy
from fedmitr_app.models import InputSpec

SPEC = InputSpec(size=2, channels=1, mean=(0.5,), std=(0.5,))
CPU = torch.device("cpu")


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_share_of_right_answers(batch_size):
    pixels = torch.randint(0, 256, (10, 1, 2, 2), dtype=torch.uint8)
    labels = torch.randint(0, 4, (10,))

    def predict(images: torch.Tensor) -> torch.Tensor:
        assert images.abs().max() <= 1 and len(images) <= batch_size
        return images.flatten(1)

    right = sum(int(p.flatten().int().argmax()) == int(t) for p, t in zip(pixels, labels))
    found = accuracy(predict, pixels, labels, SPEC, device=CPU, batch_size=batch_size)
    assert found == pytest.approx(right / 10)


def test_no_images():
    none = torch.zeros(0, 1, 2, 2, dtype=torch.uint8)
    assert accuracy(lambda x: x.flatten(1), none, torch.zeros(0).long(), SPEC, device=CPU) == 0
