"""Class moments of a shard's features under θ₀, for clients that share them."""

import numpy as np
import torch

from fedmitr_app.models.patch_vit import PatchViT
from fedmitr_app.partitions import ImageSet
from fedmitr_app.uploads import ClassMoments


@torch.no_grad()
def class_moments(
    model: PatchViT, shard: ImageSet, *, device: torch.device | str, batch_size: int = 256
) -> ClassMoments:
    """Return the moments of the class-token features of a shard's images.

    Summed in float64, since a scatter's small directions are differences of large sums.

    Parameters
    ----------
    model : PatchViT
        Holds θ₀: clients' features add up only if all come from the same weights. Put into
        evaluation mode on ``device``.
    shard : ImageSet
        Not augmented.
    """
    model.to(device).eval()
    parts = [
        model(model.spec.normalise(images.to(device))).features.double().cpu()
        for images in shard.images.split(batch_size)
    ]
    features = torch.cat(parts)
    sums = torch.zeros(model.num_classes, features.shape[1], dtype=torch.float64)
    sums.index_add_(0, shard.labels.cpu(), features)
    counts = torch.bincount(shard.labels.cpu(), minlength=model.num_classes)
    return ClassMoments(
        counts.numpy().astype(np.float64), sums.numpy(), (features.T @ features).numpy()
    )
