"""K models of one architecture as batched matrix products, in place of a loop over them.

Their weights are stacked along a first dimension K, and each linear map of all K models is one
``baddbmm``: K times fewer, K times larger launches, which a GPU that a small model leaves idle
can use. ``torch.func.vmap`` would do the same with less code, but falls off fused attention.
"""

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from fedmitr_app.models.blocks import class_attention
from fedmitr_app.models.packing import Packing
from fedmitr_app.models.patch_vit import PatchViT, ViTOutput
from fedmitr_app.models.typed import PlainBlock

_PLAIN = re.compile(
    r"cls_token|pos_embed|(patch_embed\.proj|norm|head|"
    r"blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)"
)
"""Every weight of a ViT without optional parts: layer scales, gates, norms of queries..."""


HIDDEN_BYTES = {"cpu": 2**21, "cuda": 2**24}
"""Of one model's hidden layer, up to which stacking pays. Beyond, all models' work no longer
passes through a CPU's cache; on a GPU one model's is then enough to keep it busy, because a matrix
product takes longer than a launch (docs/results/speed.md)."""
WEIGHT_BYTES = 2**28
"""Of all models, of which a stack is a copy: large models don't gain from it (choice)."""


class StackedViT:
    """K frozen models, each on its own images.

    Parameters
    ----------
    models : Sequence[PatchViT]
        Of the plain architecture that :meth:`fits` describes; their weights are copied. Those of
        :meth:`PatchViT.rounded` models are rounded a second time, after norms are absorbed.
    """

    def __init__(self, models: Sequence[PatchViT]) -> None:
        self.first = models[0]
        states = [model.vit.state_dict() for model in models]
        whole = self.first.vit.pos_embed.dtype  # some may be rounded
        self.weights = {
            name: torch.stack([state[name] for state in states]).to(whole) for name in states[0]
        }
        for number in range(len(self.first.vit.blocks)):
            self._absorb(f"blocks.{number}.norm1", f"blocks.{number}.attn.qkv")
            self._absorb(f"blocks.{number}.norm2", f"blocks.{number}.mlp.fc1")
        if self.first.precision == "bfloat16":
            for name in self.weights:
                if name.startswith(("blocks.", "patch_embed.")):
                    self.weights[name] = self.weights[name].bfloat16()

    def _absorb(self, norm: str, linear: str) -> None:
        """Let a linear map do what the norm before it would: scale and shift, of frozen weights.

        For each model other ones: as steps of their own they would be two more passes over all
        tokens, and two more on the way back.
        """
        scale, shift = self.weights.pop(f"{norm}.weight"), self.weights.pop(f"{norm}.bias")
        weight = self.weights[f"{linear}.weight"]
        bias = (weight @ shift.unsqueeze(2)).squeeze(2)
        self.weights[f"{linear}.bias"] = bias + self.weights.get(f"{linear}.bias", 0)
        self.weights[f"{linear}.weight"] = weight * scale.unsqueeze(1)

    @staticmethod
    def small(models: Sequence[PatchViT]) -> bool:
        """Say whether these are several, with few enough weights to hold them twice.

        Compiled ones are not: they have a faster way of their own.
        """
        if models[0].compiled:
            return False
        vit = models[0].vit  # counted at full width, whether or not it is rounded
        count = sum(value.numel() for value in vit.state_dict().values())
        return len(models) > 1 and len(models) * count * vit.pos_embed.itemsize <= WEIGHT_BYTES

    @staticmethod
    def pays(model: PatchViT, tokens: int, device: torch.device) -> bool:
        """Say whether small models like this one are faster stacked, at so many tokens each.

        While one model's work is small, most of the time passes between its operations. On a CPU
        not in half precision, see :meth:`PatchViT.matmul_context`, nor by oneDNN, which batched
        products don't go through.
        """
        if device.type == "cpu" and (model.precision, model.matmul) != ("float32", "torch"):
            return False
        hidden = tokens * len(model.vit.blocks[0].mlp.fc1.weight) * model.vit.pos_embed.itemsize
        return hidden <= HIDDEN_BYTES.get(device.type, 0)

    @staticmethod
    def fits(models: Sequence[PatchViT]) -> bool:
        """Say whether these models can be stacked: alike, and without timm's optional parts."""
        return all(map(_is_plain, models)) and len(set(map(_architecture, models))) == 1

    def forward_patches(
        self,
        patches: Tensor,
        position_idx: Tensor,
        *,
        attention: bool = False,
    ) -> ViTOutput:
        """Run model k on patches ``[k, B, n, C*p*p]`` that stand at ``position_idx`` ``[k, B, n]``.

        As :meth:`PatchViT.forward_patches`, every tensor with a first dimension K; of the
        class tokens alone.
        """
        vit = self.first.vit
        with self.first.matmul_context(patches.device.type):
            tokens = self._embed(patches, position_idx)
            packing = Packing.of(tokens.flatten(0, 1))
            for number, block in enumerate(vit.blocks[:-1]):
                tokens = self._block(tokens, f"blocks.{number}", block, packing)
            name = f"blocks.{len(vit.blocks) - 1}"
            tokens, cls_attn = self._class_block(tokens, name, vit.blocks[-1])
        assert isinstance(vit.norm, nn.LayerNorm)  # see fits
        tokens = _normed(tokens, vit.norm)
        tokens = torch.addcmul(
            self.weights["norm.bias"].reshape(len(tokens), 1, 1, -1),
            self.weights["norm.weight"].reshape(len(tokens), 1, 1, -1),
            tokens,
        )
        features = tokens[:, :, 0]
        return ViTOutput(
            logits=self._linear(features, "head"),
            features=features,
            patch_tokens=None,
            patch_logits=None,
            cls_attn=cls_attn[:, :, 1:] if attention else None,
        )

    def _embed(self, patches: Tensor, position_idx: Tensor) -> Tensor:
        """Embed, add positions by index, prepend the class tokens: ``[K, B, 1+n, D]``."""
        weights = self.weights
        proj = weights["patch_embed.proj.weight"].flatten(2)
        tokens = _product(patches, proj, weights["patch_embed.proj.bias"])
        first, positions = weights["pos_embed"][:, 0].split([1, self.first.num_patches], dim=1)
        model = torch.arange(len(positions), device=patches.device).reshape(-1, 1, 1)
        tokens = tokens + positions[model, position_idx]
        prefix = weights["cls_token"] + first.unsqueeze(1)  # [K, 1, 1, D]
        return torch.cat([prefix.expand(-1, tokens.shape[1], -1, -1), tokens], dim=2)

    def _block(self, tokens: Tensor, name: str, block: PlainBlock, packing: Packing) -> Tensor:
        """All of a block, on tokens ``[K, B, T, D]``."""
        attn = block.attn
        parts = self._linear(_normed(tokens, block.norm1), f"{name}.attn.qkv").flatten(0, 1)
        heads = packing.pack(parts).unflatten(-1, (3, attn.num_heads, attn.head_dim))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, packing.mask)
        mixed = packing.unpack(mixed.transpose(1, 2).flatten(2)).unflatten(0, tokens.shape[:2])
        return self._mlp(tokens + self._linear(mixed, f"{name}.attn.proj"), name, block)

    def _class_block(self, tokens: Tensor, name: str, block: PlainBlock) -> tuple[Tensor, Tensor]:
        """As :func:`run_class_token`: ``[K, B, 1, D]``, and attention ``[K, B, T]``."""
        attn, normed = block.attn, _normed(tokens, block.norm1)
        sizes, qkv = (attn.attn_dim, 2 * attn.attn_dim), f"{name}.attn.qkv"
        weights = self.weights[f"{qkv}.weight"].split(sizes, dim=1)
        biases = self.weights[f"{qkv}.bias"].split(sizes, dim=1)
        # Queries of the class tokens alone, [K*B, 1, heads, head_dim]; all keys and values.
        query, key, value = (
            part
            for seen, weight, bias in zip((normed[:, :, :1], normed), weights, biases, strict=True)
            for part in _product(seen, weight, bias)
            .flatten(0, 1)
            .unflatten(-1, (-1, attn.num_heads, attn.head_dim))
            .unbind(2)
        )
        shares = class_attention(query * attn.scale, key, tokens.dtype)
        mixed = (shares.unsqueeze(-1) * value).sum(1, keepdim=True).flatten(2)
        mixed = self._linear(mixed.unflatten(0, tokens.shape[:2]), f"{name}.attn.proj")
        token = self._mlp(tokens[:, :, :1] + mixed, name, block)
        return token, shares.mean(2).unflatten(0, tokens.shape[:2])

    def _mlp(self, tokens: Tensor, name: str, block: PlainBlock) -> Tensor:
        hidden = self._linear(_normed(tokens, block.norm2), f"{name}.mlp.fc1")
        return tokens + self._linear(block.mlp.act(hidden), f"{name}.mlp.fc2")

    def _linear(self, tokens: Tensor, name: str) -> Tensor:
        return _product(tokens, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))


def _normed(tokens: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Apply a layer norm as far as it is the same for all models."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=norm.eps)


def _product(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``[K, ..., in], [K, out, in], [K, out] -> [K, ..., out]``."""
    flat, turned = tokens.flatten(1, -2), weight.transpose(1, 2)
    found = flat @ turned if bias is None else torch.baddbmm(bias.unsqueeze(1), flat, turned)
    product: Tensor = found.unflatten(1, tokens.shape[1:-1])
    return product


def _architecture(model: PatchViT) -> tuple[object, ...]:
    """All that must be alike: modules with their sizes and constants, heads, types."""
    vit = model.vit
    heads = tuple(block.attn.num_heads for block in vit.blocks)
    return repr(vit), vit.pos_embed.shape, vit.pos_embed.dtype, heads, model.precision, model.matmul


def _is_plain(model: PatchViT) -> bool:
    vit = model.vit
    if type(model) is not PatchViT or any(type(block.mlp) is not Mlp for block in vit.blocks):
        return False
    known = all(_PLAIN.fullmatch(name) for name in vit.state_dict())
    return known and not vit.no_embed_class and isinstance(vit.norm, nn.LayerNorm)
