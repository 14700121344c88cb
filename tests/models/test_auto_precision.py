"""What 'auto' comes to, by measurements that a test makes up, and one real one."""

import copy

import pytest
import torch

from fedmitr_app.config import ModelConfig
from fedmitr_app.errors import ModelError
from fedmitr_app.models import (
    auto_precision,
    build_vit,
    resolve_auto,
    settings_of,
    undecided,
    without_auto,
)
from fedmitr_app.models.auto_precision import HALF, ONEDNN, PLAIN, seconds_of
from tests.helpers.tiny import SPEC, tiny_vit

CPU = torch.device("cpu")
AUTO = ModelConfig(precision="auto", matmul="auto")


def comes_to(monkeypatch, asked, *seconds, settings=None):
    """Decide by the seconds of float32 by torch, in bfloat16, and of float32 by oneDNN."""
    taken = dict(zip((PLAIN, HALF, ONEDNN), seconds))
    monkeypatch.setattr(auto_precision, "seconds_of", lambda model, device: taken)
    model = tiny_vit(0, torch.float32)
    chosen = resolve_auto(asked, model, CPU, settings)
    assert (model.precision, model.matmul) == (chosen.precision, chosen.matmul)
    return chosen.precision, chosen.matmul


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((1.3, 1.0), ("bfloat16", "torch")),
        ((1.29, 1.0), ("float32", "torch")),
        ((1.0, 4.0, 4.0), ("float32", "torch")),
        ((2.0, 1.3, 1.5), ("float32", "onednn")),  # half width is no 1.3 times as fast as that
        ((2.0, 1.0, 1.5), ("bfloat16", "torch")),
        ((2.0, 1.6, 1.6), ("float32", "torch")),
    ],
)
def test_what_is_faster_by_far_is_chosen(monkeypatch, seconds, expected):
    assert comes_to(monkeypatch, AUTO, *seconds) == expected


def test_what_a_user_names_stays(monkeypatch):
    fast = (9.0, 1.0, 1.0)
    named = ModelConfig(precision="float32", matmul="auto")
    assert comes_to(monkeypatch, named, *fast) == ("float32", "onednn")
    named = ModelConfig(precision="auto", matmul="torch")
    assert comes_to(monkeypatch, named, 1.0, 9.0, 0.1) == ("float32", "torch")
    named = ModelConfig(precision="auto", matmul="onednn")  # where there is none, it is torch's
    assert comes_to(monkeypatch, named, 1.0, 9.0) == ("float32", "onednn")
    assert comes_to(monkeypatch, named, *fast[:2]) == ("bfloat16", "torch")


def test_nothing_is_measured_where_nothing_is_open(monkeypatch):
    def measured(model, device):
        raise AssertionError("measured")

    monkeypatch.setattr(auto_precision, "seconds_of", measured)
    for asked in (ModelConfig(), ModelConfig(precision="bfloat16", matmul="auto")):
        chosen = resolve_auto(asked, tiny_vit(), CPU)
        assert (chosen.precision, chosen.matmul) == (asked.precision, "torch")
        assert not undecided(chosen)
    before = {"model.precision": "bfloat16", "model.matmul": "onednn"}
    assert settings_of(resolve_auto(AUTO, tiny_vit(), CPU, before)) == before


def test_what_was_decided_before_holds_as_far_as_it_is_known(monkeypatch):
    before = {"model.precision": "fp8", "model.matmul": "onednn", "seed": 3}
    assert comes_to(monkeypatch, AUTO, 1.0, 9.0, 9.0, settings=before) == ("float32", "onednn")
    named = ModelConfig(precision="float32", matmul="torch")
    assert comes_to(monkeypatch, named, 1.0, settings=before) == ("float32", "torch")


@pytest.mark.parametrize("key", ["precision", "matmul"])
def test_no_model_is_built_before_it_is_decided(key):
    asked = ModelConfig(width=16, depth=1, patch_size=4, **{key: "auto"})
    with pytest.raises(ModelError, match=f"model.{key} = 'auto' is decided by the run's server"):
        build_vit(asked, SPEC, 5, seed=0)
    made = build_vit(without_auto(asked), SPEC, 5, seed=0)
    assert (made.precision, made.matmul) == ("float32", "torch")


def test_a_measurement_times_every_way_and_leaves_the_model_as_it_is():
    model = tiny_vit(0, torch.float32).train()
    before = copy.deepcopy(model.state_dict())
    taken = seconds_of(model, CPU)
    assert {PLAIN, HALF} <= taken.keys() <= {PLAIN, HALF, ONEDNN}
    assert all(0 <= each < 60 for each in taken.values())
    assert model.training and len(model.vit.blocks) == 2
    assert (model.precision, model.matmul) == PLAIN
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(value.requires_grad and value.grad is None for value in model.parameters())
