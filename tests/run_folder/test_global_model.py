"""The saved model loads with the two lines that come with it, and nothing of ours."""

import json

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from fedmitr_app.config import ModelConfig
from fedmitr_app.models.factory import architecture_of, build_vit
from fedmitr_app.models.spec import InputSpec
from fedmitr_app.run_folder import RunFolder

SMALL = ModelConfig(name="small", patch_size=4, width=24, depth=2, heads=2)
NAMED = ModelConfig(name="vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (SMALL, InputSpec(size=12, channels=1, mean=(0.5,), std=(0.5,))),
        (NAMED, InputSpec(size=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)),
    ],
    ids=["small", "timm name"],
)
def test_the_two_lines_give_the_same_logits(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, config: ModelConfig, spec: InputSpec
) -> None:
    model = build_vit(config, spec, num_classes=5, seed=1)
    folder.save_model(model.vit.state_dict(), architecture_of(model), spec.to_dict(), list("abcde"))
    description = json.loads((folder.path / "global_model.json").read_text())
    assert description["class_names"] == list("abcde")
    assert InputSpec.from_dict(description["input_spec"]) == spec
    lines = description["load"]
    assert len(lines) == 2
    assert "fedmitr" not in "".join(lines)

    monkeypatch.chdir(folder.path)
    namespace: dict[str, object] = {}
    exec("\n".join(lines), namespace)
    images = torch.randn(2, spec.channels, spec.size, spec.size)
    with torch.no_grad():
        assert torch.equal(namespace["model"](images), model.vit.eval()(images))


def test_a_model_that_no_two_lines_load_says_so(folder: RunFolder) -> None:
    # Pooling over patches renames the last norm: the plain constructor can't take it.
    spec = InputSpec(size=12, channels=1, mean=(0.5,), std=(0.5,))
    model = build_vit(SMALL, spec, num_classes=5, seed=1)
    other = VisionTransformer(
        img_size=12,
        patch_size=4,
        in_chans=1,
        num_classes=5,
        embed_dim=24,
        depth=2,
        num_heads=2,
        global_pool="avg",
    )
    folder.save_model(other.state_dict(), architecture_of(model), spec.to_dict(), [])
    description = json.loads((folder.path / "global_model.json").read_text())
    assert description["load"] is None
    assert (folder.path / "global_model.safetensors").is_file()


def test_tensors_that_share_memory_are_saved(folder: RunFolder) -> None:
    shared = torch.arange(6.0)
    state = {"a": shared[:4], "b": shared[2:], "c": shared.view(2, 3).T}
    weights = folder.save_model(state, {"name": "small"}, {}, [])
    from safetensors.torch import load_file

    loaded = load_file(weights)
    assert all(torch.equal(loaded[key], state[key]) for key in state)
