"""Jackknife errors against textbook formulas and against many draws."""

import math

import pytest
import torch
from scipy.stats import t as student_t

from fedmitr_app.diagnostics.error_bars import (
    Error,
    alone,
    of_largest,
    paired,
    part_means,
    together,
    without_each,
)
from fedmitr_app.utils.randomness import generator

VALUES = torch.randn(40, generator=generator(0), dtype=torch.float64) + 2


def test_of_a_mean_it_is_the_standard_error():
    found = alone(without_each(VALUES))
    assert found.size == pytest.approx(float(VALUES.std()) / 40**0.5) and found.parts == 40
    assert found.half_width == pytest.approx(found.size * student_t.ppf(0.975, 39))


def test_of_a_paired_difference_only_what_differs_counts():
    other = VALUES + 0.1 * torch.randn(40, generator=generator(1), dtype=torch.float64)
    found = paired(without_each(VALUES), without_each(other))
    assert found.size == pytest.approx(float((VALUES - other).std()) / 40**0.5)
    apart = together(alone(without_each(VALUES)), alone(without_each(other)))
    assert apart.size > 5 * found.size
    assert apart.size == pytest.approx(math.hypot(VALUES.std(), other.std()) / 40**0.5)


def test_of_a_ratio_it_is_what_many_draws_show():
    """Of a function of two means, whose error no textbook formula gives."""

    def ratio(rows):
        return float(rows[:, 0].mean() / rows[:, 1].square().mean())

    def draw(seed):
        return torch.randn(60, 2, generator=generator(seed), dtype=torch.float64) + 3

    seen = torch.tensor([ratio(draw(seed)) for seed in range(400)]).std()
    sizes = []
    for seed in range(20):
        rows, others = draw(seed), ~torch.eye(60, dtype=torch.bool)
        sizes.append(alone([ratio(rows[kept]) for kept in others]).size)
    assert sum(sizes) / 20 == pytest.approx(float(seen), rel=0.15)


def test_of_a_maximum_it_is_what_many_draws_show():
    def draw(seed):
        return -torch.rand(64, generator=generator(seed), dtype=torch.float64).log()

    seen = torch.stack([draw(seed).max() for seed in range(400)]).std()
    sizes = [of_largest(draw(seed).reshape(8, 8).amax(1).tolist()).size for seed in range(100)]
    assert sum(sizes) / 100 == pytest.approx(float(seen), rel=0.15)


def test_too_few_parts_tell_nothing():
    assert math.isnan(of_largest([1.0]).size) and math.isnan(alone([1.0]).half_width)
    assert math.isnan(alone(without_each(VALUES[:1])).half_width)
    assert math.isnan(together(Error(1.0, 8), Error(math.nan, 1)).half_width)


@pytest.mark.parametrize(("count", "parts"), [(3, 3), (8, 8), (21, 8)])
def test_parts_hold_every_value_once(count, parts):
    values = torch.arange(float(count))
    found = part_means(values, generator(0))
    assert len(found) == parts
    sizes = [len(part) for part in values.tensor_split(parts)]
    assert sum(size * mean for size, mean in zip(sizes, found.tolist())) == pytest.approx(
        float(values.sum())
    )
    assert torch.equal(found, part_means(values, generator(0)))
