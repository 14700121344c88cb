"""When which patches stop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmitr_app.inversion.flops import flop_ratio, step_flops
from fedmitr_app.inversion.schedule import Schedule, keep_count
from tests.helpers.tiny import inversion_config, tiny_vit


def build(**changes) -> Schedule:
    return Schedule.build(inversion_config(**changes))


REFERENCE = {"iterations": 4000, "stops": (50.0, 100.0, 200.0, 300.0), "drop": (0.3,)}


def test_the_reference_schedule():
    counts = build(**REFERENCE).counts(196, 4000)
    assert len(counts) == 4000
    changes = [(i, n) for i, n in enumerate(counts) if i == 0 or counts[i - 1] != n]
    assert changes == [(0, 196), (50, 137), (100, 95), (200, 66), (300, 46)]


def test_fractions_mean_the_same_as_counts():
    fractions = build(**{**REFERENCE, "stops": (0.0125, 0.025, 0.05, 0.075)})
    assert dict(fractions.stops) == dict(build(**REFERENCE).stops)
    assert dict(build(iterations=20, stops=(0.25, 8.0), drop=(0.5, 0.2)).stops) == {5: 0.5, 8: 0.2}


def test_a_fraction_stops_at_the_nearest_iteration():
    assert list(build(iterations=10, stops=(0.27, 0.54), drop=(0.5,)).stops) == [3, 5]


def test_stops_of_a_short_run_fall_on_consecutive_iterations():
    schedule = build(iterations=10, stops=(0.0125, 0.025, 0.05, 0.3), drop=(0.1, 0.2, 0.3, 0.4))
    assert list(schedule.stops.items()) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]


def test_nothing_stops_before_an_iteration_gave_it_a_density():
    assert min(build(iterations=10, stops=(0.0,)).stops) == 1


@pytest.mark.parametrize("changes", [{"schedule": "dense"}, {"iterations": 0}, {"stops": ()}])
def test_nothing_to_stop(changes):
    schedule = build(**changes)
    assert not schedule.stops and schedule.counts(16, 4) == [16] * 4


@pytest.mark.parametrize(
    ("alive", "share", "kept"),
    [
        (196, 0.3, 137),
        (137, 0.3, 95),
        (10, 0.0, 10),
        (10, 0.3, 7),
        (100, 0.1, 90),
        (3, 0.95, 1),
        (1, 0.5, 1),
    ],
)
def test_keep_count_by_hand(alive, share, kept):
    assert keep_count(alive, share) == kept


@given(
    st.lists(st.lists(st.integers(0, 6), min_size=9, max_size=9), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.2, 0.5, 0.9]),
)
def test_sparse_keeps_the_densest_in_spatial_order(rows, share):
    keep = build().keep(share, torch.tensor(rows).float(), torch.Generator())
    for row, kept in zip(rows, keep.tolist()):
        # Best first; of equals the one that comes first in the image.
        ranked = sorted(range(9), key=lambda index: (-row[index], index))
        assert kept == sorted(ranked[: keep_count(9, share)])


def test_random_keeps_as_many_by_chance_per_image():
    schedule, rng = build(schedule="random"), torch.Generator().manual_seed(0)
    keep = schedule.keep(0.3, torch.zeros(400, 10), rng)
    assert keep.shape == (400, 7)
    assert all(len(set(row)) == 7 and row == sorted(row) for row in keep.tolist())
    assert torch.bincount(keep.flatten(), minlength=10).float().div(400).sub(0.7).abs().max() < 0.1
    assert schedule.counts(10, 8) == build().counts(10, 8)
    assert not schedule.needs_density and build().needs_density


def covering(row, cover):
    """The fewest of the densest patches that hold ``cover`` of a row's density."""
    for count in range(1, len(row) + 1):
        if sum(sorted(row, reverse=True)[:count]) >= cover * sum(row) * (1 - 1e-9):
            return count
    return len(row)


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=9, max_size=9), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.2, 0.5, 0.9]),
)
def test_automatic_keeps_as_few_as_hold_the_attention(rows, share):
    density = torch.tensor(rows).float()
    schedule = build(schedule="automatic")
    keep = schedule.keep(share, density, torch.Generator())
    counts = [covering(row, 1 - share) for row in rows]
    assert keep.shape == (len(rows), round(sum(counts) / len(counts)))
    for row, kept in zip(rows, keep.tolist()):
        ranked = sorted(range(9), key=lambda index: (-row[index], index))
        assert kept == sorted(ranked[: keep.shape[1]])
    assert schedule.needs_density


def test_automatic_keeps_few_where_attention_is_peaked_and_many_where_it_is_flat():
    schedule, rng = build(schedule="automatic"), torch.Generator()
    flat, peaked = torch.full((3, 16), 1 / 16), torch.full((3, 16), 0.01)
    peaked[:, 5] = 0.85
    assert schedule.keep(0.3, flat, rng).shape == (3, 12)
    assert schedule.keep(0.3, peaked, rng).tolist() == [[5]] * 3
    with pytest.raises(ValueError, match="on the way"):
        schedule.counts(16, 4)


def test_a_ratio_of_flops_weighs_each_iteration_alike():
    model = tiny_vit(dtype=torch.float32).requires_grad_(False)
    assert flop_ratio(model, [16] * 4) == 1.0 == flop_ratio(model, [])
    few = step_flops(model, 4) / step_flops(model, 16)
    assert 0.1 < few < 0.4
    assert flop_ratio(model, [16, 16, 4]) == pytest.approx((2 + few) / 3)


def test_flops_with_the_patches_tokens_are_those_of_a_whole_last_block():
    """Of 2 blocks; else the last is keys and values, 2 of 12 matrix products of a token."""
    model = tiny_vit(dtype=torch.float32).requires_grad_(False)
    share = step_flops(model, 16) / step_flops(model, 16, patch_tokens=True)
    assert share == pytest.approx((1 + 1 / 6) / 2, abs=0.1)
