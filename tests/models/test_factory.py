"""Building θ₀: seeds, checkpoints at another size, and one sentence for each mistake."""

import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fedmitr_app.config import ModelConfig
from fedmitr_app.errors import ModelError
from fedmitr_app.models import InputSpec, architecture_of, build_vit

GREY = InputSpec(size=16, channels=1, mean=(0.5,), std=(0.5,))
COLOUR = InputSpec(size=64, channels=3, mean=(0.5,), std=(0.5,))
TINY = "deit_tiny_patch16_224"


def small(seed: int = 0, **changes):
    sizes = {"name": "small", "weights": "", "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    return build_vit(ModelConfig(**{**sizes, **changes}), GREY, 3, seed)


def refusal(config: ModelConfig, spec: InputSpec, *parts: str) -> None:
    with pytest.raises(ModelError) as error:
        build_vit(config, spec, 3, seed=0)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    for part in parts:
        assert part in message


def test_the_small_preset_has_the_sizes_asked_for():
    architecture = architecture_of(small())
    assert architecture.pop("mlp_ratio") == 2.0
    assert architecture == {
        "name": "small",
        "num_classes": 3,
        "img_size": 16,
        "in_chans": 1,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
    }


def test_the_seed_draws_the_weights_and_nothing_else_does():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = small(seed=3).vit.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = small(seed=3).vit.state_dict(), small(seed=4).vit.state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["patch_embed.proj.weight"], other["patch_embed.proj.weight"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A 7-class DeiT-Tiny at 48 pixels, on disk."""
    torch.manual_seed(5)
    state = timm.create_model(TINY, img_size=48, num_classes=7).state_dict()
    path = tmp_path_factory.mktemp("weights") / "deit.safetensors"
    save_file(state, path)
    return path, state


def test_a_checkpoint_at_another_size_has_its_positions_resampled(checkpoint):
    path, state = checkpoint
    vit = build_vit(ModelConfig(name=TINY, weights=str(path)), COLOUR, 3, seed=0).vit
    loaded = vit.state_dict()
    for key, value in state.items():
        if not key.startswith(("head.", "pos_embed")):
            assert torch.equal(loaded[key], value), key
    assert torch.equal(loaded["pos_embed"][:, :1], state["pos_embed"][:, :1])
    plane = state["pos_embed"][:, 1:].reshape(1, 3, 3, -1).permute(0, 3, 1, 2)
    plane = F.interpolate(plane, size=(4, 4), mode="bicubic", antialias=True)
    torch.testing.assert_close(loaded["pos_embed"][:, 1:], plane.flatten(2).transpose(1, 2))
    assert loaded["head.weight"].shape == (3, 192)


def test_a_checkpoints_head_is_kept_when_it_fits(checkpoint):
    path, state = checkpoint
    vit = build_vit(ModelConfig(name=TINY, weights=str(path)), COLOUR, 7, seed=0).vit
    assert torch.equal(vit.head.weight, state["head.weight"])
    assert torch.equal(vit.head.bias, state["head.bias"])


def test_a_checkpoints_head_of_another_size_is_dropped_whatever_the_new_one(checkpoint):
    path, _ = checkpoint
    vit = build_vit(ModelConfig(name=TINY, weights=str(path)), COLOUR, 1000, seed=0).vit
    assert vit.head.weight.shape == (1000, 192)


def test_grey_images_sum_the_colours_of_a_checkpoint(checkpoint):
    path, state = checkpoint
    grey = InputSpec(size=48, channels=1, mean=(0.5,), std=(0.5,))
    vit = build_vit(ModelConfig(name=TINY, weights=str(path)), grey, 3, seed=0).vit
    summed = state["patch_embed.proj.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(vit.patch_embed.proj.weight, summed)
    assert torch.equal(vit.pos_embed, state["pos_embed"])


def test_a_new_head_depends_on_the_seed_alone(checkpoint):
    config = ModelConfig(name=TINY, weights=str(checkpoint[0]))
    heads = []
    for salt in range(2):
        torch.manual_seed(salt)
        heads.append(build_vit(config, COLOUR, 3, seed=1).vit.head.weight)
    assert torch.equal(*heads)


# --- mistakes


def test_an_unknown_name():
    refusal(ModelConfig(name="vit_gigantic"), COLOUR, "model.name = 'vit_gigantic'", "small")
    refusal(ModelConfig(name="resnet18"), COLOUR, "model.name = 'resnet18'", "vit_*")


def test_a_model_that_cannot_run_on_patches():
    refusal(ModelConfig(name="deit_tiny_distilled_patch16_224"), COLOUR, "Distilled", "model.name")


def test_an_image_size_that_patches_do_not_divide():
    spec = InputSpec(size=50, channels=3, mean=(0.5,), std=(0.5,))
    refusal(ModelConfig(name=TINY), spec, "data.image-size = 50", "multiple of 16")


def test_weights_for_the_small_preset(checkpoint):
    config = ModelConfig(name="small", weights=str(checkpoint[0]), patch_size=4, width=16, heads=2)
    refusal(config, GREY, "model.weights", "'small'")


def test_a_missing_checkpoint(tmp_path):
    path = tmp_path / "none.safetensors"
    refusal(ModelConfig(name=TINY, weights=str(path)), COLOUR, "model.weights", "does not exist")


def test_a_checkpoint_at_home(checkpoint, monkeypatch):
    path, state = checkpoint
    monkeypatch.setenv("HOME", str(path.parent))
    config = ModelConfig(name=TINY, weights=f"~/{path.name}")
    vit = build_vit(config, COLOUR, 7, seed=0).vit
    assert torch.equal(vit.head.weight, state["head.weight"])
    refusal(ModelConfig(name=TINY, weights="~/no.pth"), COLOUR, "'~/no.pth'", "does not exist")
    refusal(ModelConfig(name=TINY, weights="~nobody-here/no.pth"), COLOUR, "user's home")


def test_a_folder_is_no_checkpoint(tmp_path):
    (tmp_path / "x.pth").mkdir()
    refusal(ModelConfig(name=TINY, weights=str(tmp_path / "x.pth")), COLOUR, "is a folder")


TAGGED = "vit_tiny_patch16_224.augreg_in21k"


def test_a_name_may_have_a_tag(checkpoint):
    path, state = checkpoint
    model = build_vit(ModelConfig(name=TAGGED, weights=str(path)), COLOUR, 7, seed=0)
    assert torch.equal(model.vit.head.weight, state["head.weight"])
    # Both sides tell the architecture alone: the weights that it started from are θ₀'s affair.
    plain = build_vit(ModelConfig(name=TAGGED.split(".")[0]), COLOUR, 7, seed=0)
    assert architecture_of(model) == architecture_of(plain)


def test_a_tag_that_there_is_not():
    refusal(ModelConfig(name="vit_tiny_patch16_224.mine"), COLOUR, "model.name", "tag", TAGGED)


@pytest.mark.parametrize("extra", ["dist_token", "head_dist.weight", "blocks.0.ls1.gamma", "x"])
def test_a_checkpoint_with_tensors_that_the_model_has_no_place_for(tmp_path, checkpoint, extra):
    path = tmp_path / "more.safetensors"
    save_file({**checkpoint[1], extra: torch.zeros(192)}, path)
    refusal(ModelConfig(name=TINY, weights=str(path)), COLOUR, "no place for", repr(extra))


def test_a_checkpoint_of_another_kind_of_file(tmp_path):
    path = tmp_path / "weights.onnx"
    path.write_bytes(b"x")
    refusal(ModelConfig(name=TINY, weights=str(path)), COLOUR, str(path), ".safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_an_unreadable_checkpoint(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"not weights at all")
    refusal(ModelConfig(name=TINY, weights=str(path)), COLOUR, str(path), "model.weights")


def test_an_empty_checkpoint(tmp_path):
    path = tmp_path / "empty.safetensors"
    save_file({}, path)
    refusal(ModelConfig(name=TINY, weights=str(path)), COLOUR, str(path), "lacks")


class Trap:
    """Unpickling one of these would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_not_executed(tmp_path):
    sprung = tmp_path / "sprung"
    path = tmp_path / "trap.pth"
    path.write_bytes(pickle.dumps({"model": Trap(sprung)}, protocol=2))
    refusal(ModelConfig(name=TINY, weights=str(path)), COLOUR, str(path))
    assert not sprung.exists()


def test_a_checkpoint_of_another_model(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"layer.weight": torch.zeros(2)}, path)
    refusal(ModelConfig(name=TINY, weights=str(path)), COLOUR, "lacks", TINY)


def test_a_checkpoint_of_another_width(tmp_path, checkpoint):
    path = tmp_path / "cut.safetensors"
    _, state = checkpoint
    save_file({key: value[..., :5].contiguous() for key, value in state.items()}, path)
    refusal(ModelConfig(name=TINY, weights=str(path)), COLOUR, "could not be built", str(path))
