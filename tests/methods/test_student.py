"""Checkpoints of a distillation that may be damaged, or somebody else's."""

import pytest
import torch

from fedmitr_app.methods.student import _is_state, _wrong_with

FACTS = {
    "origin": "x",
    "pool": ["a"],
    "done": 2,
    "falls": 0,
    "losses": [0.5, None, 1],
    "seconds": 1.5,
}


@pytest.mark.parametrize(
    "change",
    [
        {"turn": 1},
        {"done": 4},
        {"done": None},
        {"falls": 99},
        {"losses": None},
        {"losses": [0.5] * 9},
        {"losses": ["0.5", 1.0]},
        {"pool": "a"},
        {"seconds": ""},
        {"more": 1},
    ],
)
def test_facts_that_no_checkpoint_has(change):
    assert not _wrong_with(FACTS, steps=8)
    assert _wrong_with({**FACTS, **change}, steps=8)


def test_what_is_no_generators_state():
    assert _is_state(torch.Generator().get_state())
    for draws in (None, torch.zeros(9), torch.zeros(9, dtype=torch.uint8)):
        assert not _is_state(draws)
