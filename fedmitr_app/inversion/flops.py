"""Count what a schedule saves."""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedmitr_app.models import PatchViT


def step_flops(model: PatchViT, alive: int, patch_tokens: bool = False) -> int:
    """Count the FLOPs of one forward and input-gradient backward on ``alive`` patches of one image.

    ``patch_tokens``: whether the loss reads the patches' tokens beside the logits.
    """
    proj = model.vit.patch_embed.proj
    device = proj.weight.device
    patches = torch.zeros(1, alive, proj.weight[0].numel(), device=device, requires_grad=True)
    position_idx = torch.arange(alive, device=device).unsqueeze(0)
    with FlopCounterMode(display=False) as counter:
        seen = model.forward_patches(patches, position_idx, patch_tokens=patch_tokens)
        read = [part for part in (seen.logits, seen.patch_tokens) if part is not None]
        torch.autograd.grad([part.sum() for part in read], patches)
    return int(counter.get_total_flops())


def flop_ratio(model: PatchViT, counts: Sequence[int]) -> float:
    """Return FLOPs with so many alive patches in each iteration over dense ones', in [0, 1].

    ``model`` must be frozen; every client's model has the same architecture, so that the
    ratio is the ensemble's too.
    """
    if not counts:
        return 1.0
    per_count = {alive: step_flops(model, alive) for alive in set(counts)}
    dense = step_flops(model, model.num_patches)
    return sum(per_count[alive] for alive in counts) / (dense * len(counts))
