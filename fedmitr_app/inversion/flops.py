"""What a schedule saves, counted."""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedmitr_app.models import PatchViT


def step_flops(model: PatchViT, alive: int) -> int:
    """FLOPs of one forward and input-gradient backward on ``alive`` patches of one image."""
    proj = model.vit.patch_embed.proj
    device = proj.weight.device
    patches = torch.zeros(1, alive, proj.weight[0].numel(), device=device, requires_grad=True)
    position_idx = torch.arange(alive, device=device).unsqueeze(0)
    with FlopCounterMode(display=False) as counter:
        loss = model.forward_patches(patches, position_idx).logits.sum()
        torch.autograd.grad(loss, patches)
    return counter.get_total_flops()


def flop_ratio(
    model: PatchViT, counts: Sequence[int], moving: Sequence[float] | None = None
) -> float:
    """FLOPs with so many alive patches in each iteration over those of dense ones, in [0, 1].

    ``moving`` is the share of images that take each iteration, all of them by default.
    ``model`` must be frozen; every client's model has the same architecture, so that the
    ratio is the ensemble's too.
    """
    if not counts:
        return 1.0
    per_count = {alive: step_flops(model, alive) for alive in set(counts)}
    dense = step_flops(model, model.num_patches)
    shares = moving or [1.0] * len(counts)
    spent = sum(share * per_count[alive] for alive, share in zip(counts, shares, strict=True))
    return spent / (dense * len(counts))
