"""How different the synthetic images of one class are."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmitr_app.teacher import Teacher


@torch.no_grad()
def diversity(
    teacher: Teacher,
    images: Tensor,
    labels: Tensor,
    batch_size: int = 256,
    on_batch: Callable[[int], object] = lambda count: None,
) -> float:
    """Mean pairwise cosine distance within a class, in the clients' class-token features.

    Parameters
    ----------
    images : Tensor
        Model input ``[n, C, H, W]`` on the models' device.
    labels : Tensor
        int64 ``[n]``, the likeliest class of each image's target.
    on_batch : Callable[[int], object]
        Gets how many more images a client has read.

    Returns
    -------
    float
        In [0, 2]: 0 when all images of a class look alike to every client; the mean over
        clients and over the classes with at least two images. 0 when there is none.
    """
    distances = []
    for model in teacher.models:
        features = []
        for part in images.split(batch_size):
            features.append(model(part).features)
            on_batch(len(part))
        unit = F.normalize(torch.cat(features), dim=-1)
        for label in labels.unique():
            group = unit[labels == label]
            count = len(group)
            if count > 1:
                # Off-diagonal mean of the Gram matrix, without building it.
                similarity = (group.sum(0).square().sum() - count) / (count * (count - 1))
                distances.append(1 - similarity)
    return float(torch.stack(distances).mean()) if distances else 0.0
