"""The baseline: a straightforward loop of sparse model inversion, as published codes run it.

Written from the description alone (ancestor: Sparse Model Inversion, ICML 2024), with what our
engine leaves out: every client's weights want a gradient and get one, every block keeps its
attention matrices, every pixel is embedded before tokens are dropped, and torch's own Adam
moves whole images. Eager, float32. It is here to be timed, not to be used.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedmitr_app.models import PatchViT


def published_inversion(
    models: Sequence[PatchViT], starts: Tensor, targets: Tensor, counts: Sequence[int]
) -> Tensor:
    """Invert ``starts`` ``[B, C, H, W]`` for ``counts`` alive patches in each iteration."""
    vits = [model.requires_grad_(True).vit for model in models]
    images = starts.clone().requires_grad_()
    optimiser = torch.optim.Adam([images], lr=0.25, betas=(0.5, 0.99))
    patches = models[0].num_patches
    alive = torch.arange(patches, device=images.device).expand(len(images), -1)
    maps: list[Tensor] = []
    for count in counts:
        if count < alive.shape[1]:
            density = torch.stack([each[-1].mean(1)[:, 0, 1:] for each in maps]).mean(0)
            alive = alive.gather(1, density.topk(count).indices.sort(1).values)
        shift = int(torch.randint(-16, 17, ())) if images.shape[-1] > 100 else 1
        views = images.roll((shift, shift), (2, 3))
        seen = [_forward(vit, views, alive) for vit in vits]
        maps = [attention for _, attention in seen]
        logits = torch.stack([each for each, _ in seen]).mean(0)
        rough = sum((views.diff(dim=dim) ** 2).sum() ** 0.5 for dim in (2, 3))
        loss = F.cross_entropy(logits, targets) + 1e-4 * rough
        optimiser.zero_grad()
        for vit in vits:
            vit.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()  # as the logging of published loops does
    return images.detach()


def _forward(vit: nn.Module, images: Tensor, alive: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Class logits, and the attention matrices of every block ``[B, heads, T, T]``."""
    tokens = vit.patch_embed(images)
    tokens = torch.cat([vit.cls_token.expand(len(tokens), -1, -1), tokens], 1) + vit.pos_embed
    index = alive.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    tokens = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, index)], 1)
    maps = []
    for block in vit.blocks:
        attn, normed = block.attn, block.norm1(tokens)
        qkv = attn.qkv(normed).unflatten(-1, (3, attn.num_heads, attn.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * attn.scale).softmax(-1)
        maps.append(weights)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        tokens = tokens + attn.proj(mixed)
        tokens = tokens + block.mlp(block.norm2(tokens))
    return vit.head(vit.norm(tokens)[:, 0]), maps
