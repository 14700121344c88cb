"""A model that somebody else made is taken, or refused with what to do about it."""

import pytest
import timm
import torch
import torchvision
from timm.layers import SwiGLU
from timm.models.vision_transformer import VisionTransformer

from fedmitr_app.errors import ModelError
from fedmitr_app.models import InputSpec, PatchViT, wrap_model
from tests.helpers.tiny import shake


def vit(**changes: object) -> VisionTransformer:
    sizes = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 5}
    return VisionTransformer(**{**sizes, "embed_dim": 24, "depth": 2, "num_heads": 2, **changes})


def with_head(head: torch.nn.Module) -> VisionTransformer:
    model = vit(num_classes=1000)
    model.head = head
    return model


def hooked() -> VisionTransformer:
    model = vit()
    model.register_forward_hook(lambda module, inputs, output: output + 1)
    return model


def spoilt(value: float) -> VisionTransformer:
    model = vit()
    model.head.bias.data[1] = value
    return model


def overflowing() -> VisionTransformer:
    model = vit()
    model.head.weight.data.fill_(1e38)
    model.norm.bias.data.fill_(1e10)
    return model


def of_torchvision(**sizes: int) -> torch.nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=1, num_heads=2, mlp_dim=8, num_classes=3, **sizes
    )


def of_hugging_face() -> torch.nn.Module:
    kind = type("ViTForImageClassification", (torch.nn.Linear,), {})
    kind.__module__ = "transformers.models.vit.modeling_vit"  # not installed here
    return kind(1, 1)


REFUSED = {
    "torchvision's": (lambda: of_torchvision(hidden_dim=16), "torchvision's VisionTransformer"),
    "torchvision's base": (
        lambda: of_torchvision(hidden_dim=768),
        "timm.create_model('vit_base_patch16_224', num_classes=3, img_size=32) instead",
    ),
    "Hugging Face's": (of_hugging_face, "Hugging Face's transformers"),
    "a convolutional network": (torchvision.models.resnet18, "not a ResNet"),
    "compiled": (lambda: torch.compile(vit()), "pass what it holds, model._orig_mod"),
    "spread over GPUs": (lambda: torch.nn.DataParallel(vit()), "model.module"),
    "a name": (lambda: "deit_tiny_patch16_224", "not a str: pass a plain timm ViT"),
    "weights alone": (lambda: vit().state_dict(), "not a OrderedDict"),
    "distilled": (
        lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=32),
        "VisionTransformerDistilled",
    ),
    "no class token": (lambda: vit(class_token=False, global_pool="avg"), "class token"),
    "another MLP": (lambda: vit(mlp_layer=SwiGLU), "MLPs"),
    "no blocks": (lambda: vit(depth=0), "no blocks"),
    "half width": (lambda: vit().half(), "cls_token is float16, and it must be float32"),
    "double width": (lambda: vit().double(), "float64"),
    "no values": (lambda: vit(device="meta"), "has no values"),
    "NaN": (lambda: spoilt(float("nan")), "head.bias holds NaN"),
    "answers that overflow": (overflowing, "answers to noise aren't finite"),
    "a head of other classes": (
        lambda: with_head(torch.nn.Linear(24, 5)),
        "num_classes = 1000, but its head gives 5",
    ),
    "no head": (lambda: vit(num_classes=0), "num_classes = 0"),
    "a single class": (lambda: vit(num_classes=1), "at least 2"),
    "a head that doesn't fit": (lambda: with_head(torch.nn.Linear(7, 5)), "can't answer images"),
    "a head without a bias": (
        lambda: with_head(torch.nn.Linear(24, 1000, bias=False)),
        "it is Linear(bias=False): call model.reset_classifier",
    ),
    "a head of several layers": (
        lambda: with_head(torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(24, 1000))),
        "it is Sequential(bias=False)",
    ),
    "a hook": (hooked, "a hook, or a forward of its own"),
    "dropout": (lambda: vit(drop_rate=0.1), "head_drop drops a share of 0.1 at random"),
    "dropout of positions": (lambda: vit(pos_drop_rate=0.1), "pos_drop"),
    "dropout of patches": (lambda: vit(patch_drop_rate=0.1), "patch_drop"),
    "dropout in a block": (lambda: vit(proj_drop_rate=0.1), "blocks.0.attn.proj_drop"),
    "dropout of attention": (lambda: vit(attn_drop_rate=0.1), "blocks.0.attn.attn_drop"),
    "stochastic depth": (lambda: vit(drop_path_rate=0.1), "blocks.1.drop_path1"),
    "norms over the batch": (lambda: vit(norm_layer=torch.nn.BatchNorm1d), "over the batch"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_sentence(case):
    build, words = REFUSED[case]
    with pytest.raises(ModelError) as error:
        wrap_model(build())
    assert words in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reg_tokens": 2},
        {"reg_tokens": 1, "no_embed_class": True},
        {"qk_norm": True, "init_values": 1e-5},
        {"pre_norm": True, "final_norm": False},
        {"dynamic_img_size": True},
        {"in_chans": 4},
    ],
)
def test_plain_ones_are_taken_and_left_as_they_were(changes):
    model = vit(**changes)
    shake(model, seed=1, scale=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    taken = wrap_model(model)
    assert taken.vit is model and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn from what others draw from


def test_images_are_those_that_the_model_takes_or_that_are_said():
    assert wrap_model(vit(in_chans=3)).spec == InputSpec(16, 3, (0.5,), (0.5,))
    spec = InputSpec(16, 1, (0.1,), (0.3,))
    assert wrap_model(vit(), spec).spec == spec
    wrapped = PatchViT(vit(), spec, "bfloat16")
    assert wrap_model(wrapped) is wrap_model(wrapped, spec) is wrapped
    with pytest.raises(ModelError, match="leave it out, or pass the timm model"):
        wrap_model(wrapped, InputSpec(16, 1, (0.5,), (0.5,)))
