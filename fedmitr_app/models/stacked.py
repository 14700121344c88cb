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

from fedmitr_app.models.patch_vit import PatchViT, ViTOutput


_PLAIN = re.compile(
    r"cls_token|pos_embed|(patch_embed\.proj|norm|head|"
    r"blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)"
)
"""Every weight of a ViT without optional parts: layer scales, gates, norms of queries..."""


class StackedViT:
    """K frozen models, each on its own images.

    Parameters
    ----------
    models : Sequence[PatchViT]
        Of the plain architecture that :meth:`fits` describes; their weights are copied.
    """

    def __init__(self, models: Sequence[PatchViT]) -> None:
        self.first = models[0]
        states = [model.vit.state_dict() for model in models]
        self.weights = {name: torch.stack([state[name] for state in states]) for name in states[0]}

    @staticmethod
    def fits(models: Sequence[PatchViT]) -> bool:
        """Say whether these models can be stacked: alike, and without timm's optional parts."""
        return all(map(_is_plain, models)) and len(set(map(_architecture, models))) == 1

    def forward_patches(
        self,
        patches: Tensor,
        position_idx: Tensor,
        *,
        patch_tokens: bool = False,
        attention: bool = False,
    ) -> ViTOutput:
        """Run model k on patches ``[k, B, n, C*p*p]`` that stand at ``position_idx`` ``[k, B, n]``.

        As :meth:`PatchViT.forward_patches`, every tensor with a first dimension K; without
        ``patch_logits``.
        """
        vit, cls_attn = self.first.vit, None
        with self.first.products(patches.device.type):
            tokens = self._embed(patches, position_idx)
            for number, block in enumerate(vit.blocks):
                name, last = f"blocks.{number}", number + 1 == len(vit.blocks)
                normed = self._norm(tokens, f"{name}.norm1", block.norm1)
                query, key, value = self._heads(normed, f"{name}.attn.qkv", block.attn)
                if attention and last:
                    scores = (query[..., :1, :] * block.attn.scale) @ key.transpose(-2, -1)
                    cls_attn = scores.to(tokens.dtype).softmax(-1).mean(1)[:, 0, 1:]
                    cls_attn = cls_attn.unflatten(0, tokens.shape[:2])
                if last and not patch_tokens:  # what follows is for the class token alone
                    query, tokens = query[..., :1, :], tokens[:, :, :1]
                mixed = F.scaled_dot_product_attention(query, key, value)
                mixed = mixed.transpose(1, 2).flatten(2).unflatten(0, tokens.shape[:2])
                tokens = tokens + self._linear(mixed, f"{name}.attn.proj")
                normed = self._norm(tokens, f"{name}.norm2", block.norm2)
                hidden = block.mlp.act(self._linear(normed, f"{name}.mlp.fc1"))
                tokens = tokens + self._linear(hidden, f"{name}.mlp.fc2")
        tokens = self._norm(tokens, "norm", vit.norm)
        features = tokens[:, :, 0]
        logits = self._linear(features.unsqueeze(2), "head").squeeze(2)
        patches_seen = tokens[:, :, 1:] if patch_tokens else None
        return ViTOutput(logits, features, patches_seen, None, cls_attn)

    def _embed(self, patches: Tensor, position_idx: Tensor) -> Tensor:
        """Embed, add positions by index, prepend the class tokens: ``[K, B, 1+n, D]``."""
        weights = self.weights
        proj = weights["patch_embed.proj.weight"].flatten(2)
        tokens = _product(patches, proj, weights["patch_embed.proj.bias"])
        positions = weights["pos_embed"][:, 0]
        model = torch.arange(len(positions), device=patches.device).reshape(-1, 1, 1)
        tokens = tokens + positions[:, 1:][model, position_idx]
        prefix = weights["cls_token"] + positions[:, :1].unsqueeze(1)  # [K, 1, 1, D]
        return torch.cat([prefix.expand(-1, tokens.shape[1], -1, -1), tokens], dim=2)

    def _linear(self, tokens: Tensor, name: str) -> Tensor:
        return _product(tokens, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, tokens: Tensor, name: str, norm: nn.LayerNorm) -> Tensor:
        shape = (len(tokens), 1, 1, -1)
        weight, bias = (self.weights[f"{name}.{part}"] for part in ("weight", "bias"))
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=norm.eps)
        return normed * weight.reshape(shape) + bias.reshape(shape)

    def _heads(self, tokens: Tensor, name: str, attn: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``[K*B, heads, T, head_dim]`` each."""
        parts = self._linear(tokens, name).unflatten(-1, (3, attn.num_heads, attn.head_dim))
        query, key, value = parts.flatten(0, 1).permute(2, 0, 3, 1, 4)
        return query, key, value


def _product(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``[K, B, T, in], [K, out, in], [K, out] -> [K, B, T, out]``."""
    flat, turned = tokens.flatten(1, 2), weight.transpose(1, 2)
    found = flat @ turned if bias is None else torch.baddbmm(bias.unsqueeze(1), flat, turned)
    return found.unflatten(1, tokens.shape[1:3])


def _architecture(model: PatchViT) -> tuple[object, ...]:
    """All that must be alike: modules with their sizes and constants, heads, types."""
    vit = model.vit
    heads = tuple(block.attn.num_heads for block in vit.blocks)
    return repr(vit), vit.pos_embed.shape, vit.pos_embed.dtype, heads, model.precision


def _is_plain(model: PatchViT) -> bool:
    vit = model.vit
    if type(model) is not PatchViT or any(type(block.mlp) is not Mlp for block in vit.blocks):
        return False
    known = all(_PLAIN.fullmatch(name) for name in vit.state_dict())
    return known and not vit.no_embed_class and isinstance(vit.norm, nn.LayerNorm)
