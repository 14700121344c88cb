"""Read each client's class prior off its weights (method note, section 1: choice).

A model trained on a skewed shard answers structureless images with the classes it has
seen. Its mean softmax over such images, times its number of examples, estimates how many
examples of each class it holds, without label counts being uploaded.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedmitr_app.models import PatchViT


@torch.no_grad()
def probe_priors(models: Sequence[PatchViT], images: Tensor, batch_size: int = 256) -> Tensor:
    """Return each model's mean softmax over ``images`` ``[n, C, H, W]``: ``[K, classes]``."""
    return torch.stack(
        [
            torch.cat([model(part).logits.softmax(-1) for part in images.split(batch_size)]).mean(0)
            for model in models
        ]
    )
