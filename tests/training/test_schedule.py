"""The learning rate's course, step by step."""

import pytest
import torch

from fedmitr_app.training import warmup_cosine


def rates(steps: int, warmup: float) -> list[float]:
    """The factor in each step, and the one after the last."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = warmup_cosine(optimizer, steps, warmup)
    factors = []
    for _ in range(steps + 1):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("steps", [1, 2, 10, 97])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_it_rises_to_one_then_falls_to_nothing(steps, warmup):
    factors = rates(steps, warmup)
    assert factors[0] > 0, "a single step must train"
    peak = round(warmup * steps)
    assert factors[peak] == max(factors) == 1
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == pytest.approx(0 if peak < steps else 1)


def test_half_way_down_it_is_one_half():
    assert rates(10, 0.0)[5] == pytest.approx(0.5)
