"""FedMITR in somebody's project: what doesn't fit shows before anybody is asked to train."""

import pytest
import torch
from flwr.app import ArrayRecord
from timm.models.vision_transformer import VisionTransformer

from fedmitr_app.errors import ConfigError, ModelError
from fedmitr_app.strategies import FedMITR
from tests.helpers.fake_grid import FakeGrid
from tests.helpers.rounds import QUICK


def vit(**changes):
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3}
    return VisionTransformer(**{**sizes, "embed_dim": 16, "depth": 1, "num_heads": 2, **changes})


class NobodyIsAsked(Exception):
    """Raised by a grid that is asked for its nodes: everything before was right."""


def start(model, arrays):
    """Start a round on a grid that tells when it is asked for anything."""

    class Untouched(FakeGrid):
        def get_node_ids(self):
            raise NobodyIsAsked

    FedMITR(model, device="cpu", **QUICK).start(Untouched([11], None), ArrayRecord(arrays))


def changed(state, **changes):
    return {**state, **{name.replace("__", "."): value for name, value in changes.items()}}


WRONG = {
    "none": lambda state: {},
    "without one": lambda state: {k: v for k, v in state.items() if k != "head.bias"},
    "of a wrapped model": lambda state: {f"module.{name}": v for name, v in state.items()},
    "one more": lambda state: changed(state, extra=torch.zeros(1)),
    "other classes": lambda state: changed(state, head__bias=torch.zeros(5)),
    "another width": lambda state: changed(state, head__bias=state["head.bias"].double()),
    "other weights": lambda state: changed(state, head__bias=state["head.bias"] + 1),
}
WORDS = {
    "none": "they lack 'cls_token'",
    "without one": "they lack 'head.bias'",
    "of a wrapped model": "they lack 'cls_token'",
    "one more": "they hold 'extra', which it has not",
    "other classes": "head.bias has shape (5,), not (3,)",
    "another width": "head.bias is torch.float64, not torch.float32",
    "other weights": "head.bias has other values",
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_are_not_the_models_are_refused_before_anybody_is_asked(case):
    model = vit()
    with pytest.raises(ConfigError) as error:
        start(model, WRONG[case](model.state_dict()))
    assert WORDS[case] in str(error.value)
    assert "pass ArrayRecord(model.state_dict())" in str(error.value)


def test_the_models_own_arrays_are_right():
    model = vit()
    with pytest.raises(NobodyIsAsked):
        start(model, model.state_dict())


def test_a_model_of_no_use_is_refused_when_the_strategy_is_made():
    with pytest.raises(ModelError, match="head_drop drops a share of 0.1 at random"):
        FedMITR(vit(drop_rate=0.1))
    with pytest.raises(ModelError, match="num_classes = 3, but its head gives 16"):
        model = vit()
        model.head = torch.nn.Identity()
        FedMITR(model)
