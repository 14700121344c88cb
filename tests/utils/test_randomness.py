"""Draws depend on the run seed and the scope, and on nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmitr_app.utils.randomness import derive_seed, generator, seeded_init


def test_known_values_never_change():
    # A changed value would silently change every result that was ever reported.
    assert derive_seed(0, "client-1", "training") == 8491632929397704753
    assert torch.rand(2, generator=generator(0, "x")).tolist() == pytest.approx(
        [0.3540753722190857, 0.7723543643951416], abs=1e-7
    )


@given(st.integers(0, 2**62), st.lists(st.text() | st.integers(), max_size=3))
def test_a_seed_is_one_that_torch_takes(seed, scope):
    derived = derive_seed(seed, *scope)
    assert 0 <= derived < 2**63
    assert torch.Generator().manual_seed(derived).initial_seed() == derived


def test_every_part_of_the_scope_counts():
    scopes = [(0,), (1,), (0, "a"), (0, "a", "b"), (0, "b", "a"), (0, "ab"), (0, 1), (0, "a", 1)]
    assert len({derive_seed(*scope) for scope in scopes}) == len(scopes)


def test_generators_of_one_scope_draw_alike_and_apart_from_each_other():
    first, second = generator(0, "a"), generator(0, "a")
    torch.rand(7, generator=first)
    other = torch.rand(5, generator=second)
    assert torch.equal(torch.rand(5, generator=generator(0, "a")), other)


def test_seeded_init_leaves_the_callers_state():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with seeded_init(0, "model"):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(inside, torch.rand(4, generator=generator(0, "model")))


def test_seeded_init_restores_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded_init(0, "model"):
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)
