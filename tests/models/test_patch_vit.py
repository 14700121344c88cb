"""The wrapper against timm's own forward, a masked full forward, and attention by hand."""

import pytest
import timm
import torch
from timm.layers import Attention
from timm.models.vision_transformer import ResPostBlock, VisionTransformer

from fedmitr_app.errors import ModelError
from fedmitr_app.models import InputSpec, PatchViT, architecture_of
from tests.helpers.tiny import shake

SMALL = {"num_classes": 5, "depth": 2, "embed_dim": 48, "num_heads": 3}


def of_timm(name: str, size: int, **changes) -> VisionTransformer:
    return timm.create_model(name, img_size=size, **{**SMALL, **changes})


def by_hand(**changes) -> VisionTransformer:
    return VisionTransformer(
        **{"img_size": 16, "patch_size": 4, "in_chans": 1, "mlp_ratio": 2.0, **SMALL, **changes}
    )


def gated() -> VisionTransformer:
    vit = by_hand()
    for block in vit.blocks:
        block.attn = Attention(vit.embed_dim, num_heads=3, qkv_bias=True, gated=True)
    return vit


VITS = {
    "small": by_hand,
    "vit_tiny": lambda: of_timm("vit_tiny_patch16_224", 64),
    "deit_tiny": lambda: of_timm("deit_tiny_patch16_224", 48),
    "deit3: positions without the class token, layer scale": lambda: of_timm(
        "deit3_small_patch16_224", 64
    ),
    "dinov2: registers": lambda: of_timm("vit_small_patch14_reg4_dinov2", 56),
    "clip: norm before the blocks, no bias": lambda: of_timm("vit_base_patch16_clip_224", 64),
    "normed queries and keys": lambda: by_hand(qk_norm=True),
    "normed attention": lambda: by_hand(scale_attn_norm=True),
    "gated attention": gated,
    "norm after pooling": lambda: by_hand(fc_norm=True),
    "registers with positions": lambda: by_hand(reg_tokens=2),
    "no bias in qkv": lambda: by_hand(qkv_bias=False),
    "one block": lambda: by_hand(depth=1),
    "any image size": lambda: by_hand(dynamic_img_size=True),
}


@pytest.fixture(params=VITS, ids=str)
def model(request) -> PatchViT:
    torch.manual_seed(0)
    vit = VITS[request.param]()
    shake(vit, seed=1, scale=0.1)
    spec = InputSpec(vit.patch_embed.img_size[0], vit.in_chans, mean=(0.5,), std=(0.5,))
    return PatchViT(vit.double(), spec).eval()


def images_for(model: PatchViT, count: int = 3) -> torch.Tensor:
    rng = torch.Generator().manual_seed(2)
    shape = (count, model.spec.channels, model.spec.size, model.spec.size)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def some_patches(model: PatchViT, count: int = 3) -> torch.Tensor:
    """Different patches for each image, in no order."""
    rng = torch.Generator().manual_seed(3)
    keep = max(1, model.num_patches // 3)
    return torch.stack(
        [torch.randperm(model.num_patches, generator=rng)[:keep] for _ in range(count)]
    )


def embedded(model: PatchViT, images: torch.Tensor) -> torch.Tensor:
    vit = model.vit
    return vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))


def masked_forward(model: PatchViT, images: torch.Tensor, keep_idx: torch.Tensor):
    """All tokens run, but nobody attends to a dropped one: class logits and normed tokens."""
    vit, prefix = model.vit, model.vit.num_prefix_tokens
    length = prefix + model.num_patches
    seen = torch.zeros(len(images), 1, length, length, dtype=torch.bool)
    for image, kept in enumerate(keep_idx.tolist()):
        for token in [*range(prefix), *(prefix + patch for patch in kept)]:
            seen[image, :, :, token] = True
    tokens = embedded(model, images)
    for block in vit.blocks:
        tokens = block(tokens, attn_mask=seen)
    tokens = vit.norm(tokens)
    return vit.forward_head(tokens), tokens[:, prefix:]


def test_all_patches_give_timms_own_logits(model):
    images = images_for(model)
    torch.testing.assert_close(model(images).logits, model.vit(images))


def test_the_class_tokens_short_way_learns_as_timms_own(model):
    images = images_for(model)
    found = []
    ways = (model(images).logits, model(images, patch_tokens=True).logits, model.vit(images))
    for logits in ways:
        model.zero_grad()
        logits.logsumexp(1).sum().backward()
        found.append([weight.grad.clone() for weight in model.parameters()])
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[2])


@pytest.mark.parametrize("rate", ["attn_drop_rate", "proj_drop_rate", "drop_path_rate"])
def test_all_that_is_dropped_in_training_is_dropped_from_the_class_token(rate):
    # All of it, so that chance decides nothing; of paths the last block's alone.
    model = PatchViT(by_hand(**{rate: 1.0}), InputSpec(16, 1, (0.5,), (0.5,))).train()
    images = images_for(model).float()
    expected = model.vit(images)
    torch.testing.assert_close(model(images).logits, expected)
    assert not torch.allclose(model.eval()(images).logits, expected)


def test_all_patches_in_any_order_give_the_same_logits(model):
    images = images_for(model)
    order = torch.stack([torch.randperm(model.num_patches) for _ in images])
    torch.testing.assert_close(model(images, order).logits, model.vit(images))


def test_a_subset_equals_the_full_forward_with_the_rest_masked(model):
    images, keep_idx = images_for(model), some_patches(model)
    output = model(images, keep_idx, patch_tokens=True, patch_logits=True)
    logits, tokens = masked_forward(model, images, keep_idx)
    kept = torch.stack([row[idx] for row, idx in zip(tokens, keep_idx)])
    torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(model(images, keep_idx).logits, logits)
    torch.testing.assert_close(output.patch_tokens, kept)
    torch.testing.assert_close(output.patch_logits, model.vit.head(model.vit.fc_norm(kept)))
    torch.testing.assert_close(model.vit.head(output.features), logits)


def test_dropped_pixels_change_nothing_and_get_no_gradient(model):
    images, keep_idx = images_for(model).requires_grad_(), some_patches(model)
    output = model(images, keep_idx)
    (grad,) = torch.autograd.grad(output.logits.square().sum(), images)
    patch, grid = model.patch_size, model.grid
    for image in range(len(images)):
        for index in range(model.num_patches):
            row, col = patch * (index // grid), patch * (index % grid)
            moved = grad[image, :, row : row + patch, col : col + patch].abs().sum() > 0
            assert moved == (index in keep_idx[image].tolist())
            if index not in keep_idx[image].tolist():
                with torch.no_grad():
                    images[image, :, row : row + patch, col : col + patch] = 7.0
    assert torch.equal(model(images, keep_idx).logits, output.logits)


def attention_by_hand(model: PatchViT, images: torch.Tensor) -> torch.Tensor:
    vit = model.vit
    tokens = embedded(model, images)
    for block in vit.blocks[:-1]:
        tokens = block(tokens)
    block = vit.blocks[-1]
    heads, width = block.attn.num_heads, vit.embed_dim // block.attn.num_heads
    result = torch.zeros(len(images), model.num_patches, dtype=torch.float64)
    for image, normed in enumerate(block.norm1(tokens)):
        query, key, _ = block.attn.qkv(normed).chunk(3, dim=-1)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            asked, answers = block.attn.q_norm(query[0, part]), block.attn.k_norm(key[:, part])
            scores = torch.stack([asked @ answer for answer in answers]) / width**0.5
            shares = scores.exp() / scores.exp().sum()
            result[image] += shares[vit.num_prefix_tokens :] / heads
    return result


def test_class_attention_equals_the_last_blocks_by_hand(model):
    images = images_for(model)
    output = model(images, attention=True)
    torch.testing.assert_close(output.cls_attn, attention_by_hand(model, images))
    torch.testing.assert_close(output.logits, model(images).logits)


def test_class_attention_of_a_subset_follows_its_order(model):
    images, keep_idx = images_for(model), some_patches(model)
    straight = model(images, keep_idx, attention=True).cls_attn
    turned = model(images, keep_idx.flip(1), attention=True).cls_attn
    torch.testing.assert_close(turned, straight.flip(1))


def test_nothing_is_computed_that_was_not_asked_for(model):
    output = model(images_for(model))
    assert (output.patch_tokens, output.patch_logits, output.cls_attn) == (None,) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_number_types(dtype):
    vit = by_hand().to(dtype)
    model = PatchViT(vit, InputSpec(16, 1, (0.5,), (0.5,))).eval()
    images, keep_idx = images_for(model).to(dtype), some_patches(model)
    output = model(images, keep_idx, patch_logits=True, attention=True)
    assert {part.dtype for part in output} == {dtype}
    torch.testing.assert_close(model(images).logits, vit(images), rtol=0.05, atol=0.05)


def test_an_empty_batch_passes():
    model = PatchViT(by_hand(), InputSpec(16, 1, (0.5,), (0.5,))).eval()
    output = model(torch.zeros(0, 1, 16, 16), attention=True)
    assert output.logits.shape == (0, 5) and output.cls_attn.shape == (0, 16)


def test_patchify_cuts_row_by_row():
    model = PatchViT(by_hand(in_chans=3), InputSpec(16, 3, (0.5,), (0.5,)))
    images = images_for(model, 2)
    patches = model.patchify(images)
    for index in range(16):
        row, col = 4 * (index // 4), 4 * (index % 4)
        window = images[:, :, row : row + 4, col : col + 4]
        assert torch.equal(patches[:, index], window.flatten(1))


def test_architecture_is_json_able_and_complete():
    model = PatchViT(by_hand(), InputSpec(16, 1, (0.5,), (0.5,)))
    architecture = architecture_of(model)
    assert architecture.pop("mlp_ratio") == 2.0
    assert architecture == {
        "name": "small",
        "num_classes": 5,
        "img_size": 16,
        "in_chans": 1,
        "patch_size": 4,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
    }


def adapted() -> VisionTransformer:
    vit = by_hand()
    vit.blocks[1].attn.qkv = torch.nn.Sequential(vit.blocks[1].attn.qkv)
    return vit


REFUSED = {
    "distilled": (lambda: of_timm("deit_tiny_distilled_patch16_224", 32), "Distilled"),
    "average-pooled": (lambda: by_hand(global_pool="avg"), "class token"),
    "pooled by attention": (lambda: by_hand(global_pool="map"), "class token"),
    "no class token": (lambda: by_hand(class_token=False, global_pool="avg"), "class token"),
    "rotary": (
        lambda: timm.create_model("vit_small_patch16_rope_224", img_size=32, **SMALL),
        "Eva",
    ),
    "relative positions": (
        lambda: timm.create_model("vit_relpos_small_patch16_224", img_size=32, **SMALL),
        "RelPos",
    ),
    "no positions": (lambda: by_hand(pos_embed="none"), "position embeddings"),
    "oblong patches": (lambda: by_hand(patch_size=(4, 2)), "aren't square"),
    "oblong images": (lambda: by_hand(img_size=(16, 32)), "images aren't square"),
    "norm after attention": (lambda: by_hand(block_fn=ResPostBlock), "blocks"),
    "adapted attention": (adapted, "one linear map"),
    "a convolutional network": (lambda: torch.nn.Conv2d(1, 1, 1), "Conv2d"),
    "patches that don't fill the image": (lambda: by_hand(img_size=18), "multiple of 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_models_are_refused_in_one_sentence(case):
    build, part = REFUSED[case]
    with pytest.raises(ModelError) as error:
        PatchViT(build(), InputSpec(16, 1, (0.5,), (0.5,)))
    message = str(error.value)
    assert part in message and message.endswith(".") and "\n" not in message


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (16, 3)])
def test_a_spec_of_other_images_is_refused(size, channels):
    with pytest.raises(ModelError, match="16 pixels and 1 channels"):
        PatchViT(by_hand(), InputSpec(size, channels, (0.5,), (0.5,)))


def test_a_precision_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match="precision = 'fp16' is not allowed: .* 'bfloat16'"):
        PatchViT(by_hand(), InputSpec(16, 1, (0.5,), (0.5,)), "fp16")


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()


@pytest.mark.parametrize("wanted", [{}, {"patch_logits": True, "attention": True}])
@pytest.mark.parametrize("count", [None, 3], ids=["all patches", "few"])
def test_half_width_products_change_little_and_everything_returned_is_full_width(count, wanted):
    found = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        vit = by_hand()
        shake(vit, seed=1, scale=0.1)
        model = PatchViT(vit, InputSpec(16, 1, (0.5,), (0.5,)), precision).eval()
        images = images_for(model, count=9).float().requires_grad_()
        keep = None if count is None else some_patches(model, 9)[:, :count]
        output = model(images, keep, **wanted)
        output.logits.logsumexp(1).sum().backward()
        weight = vit.blocks[0].mlp.fc1.weight.grad
        given = [part for part in output if part is not None]
        found[precision] = [*given, images.grad, weight]
        assert all(value.dtype == torch.float32 for value in found[precision])
    pairs = list(zip(found["float32"], found["bfloat16"], strict=True))
    for full, half in pairs:
        assert cosine(full, half) > 0.99
    # Not by accident the same products.
    assert not torch.equal(*pairs[0])


@pytest.mark.parametrize("wanted", [{}, {"patch_logits": True, "attention": True}])
def test_weights_that_are_rounded_once_give_the_same_to_the_last_bit(wanted):
    vit = by_hand()
    shake(vit, seed=1, scale=0.1)
    model = PatchViT(vit, InputSpec(16, 1, (0.5,), (0.5,)), "bfloat16").eval()
    model.requires_grad_(False)
    rounded, found = model.rounded(), []
    for each in (model, rounded):
        images = images_for(model, count=9).float().requires_grad_()
        output = each(images, some_patches(model, 9)[:, :3], **wanted)
        output.logits.logsumexp(1).sum().backward()
        found.append([*(part for part in output if part is not None), images.grad])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    kept, given = vit.blocks[0].attn.qkv.weight, rounded.vit.blocks[0].attn.qkv.weight
    assert (kept.dtype, given.dtype) == (torch.float32, torch.bfloat16)
    assert rounded.vit.head.weight.dtype == rounded.vit.norm.weight.dtype == torch.float32
    full = PatchViT(vit, model.spec)
    assert full.rounded() is full
