"""How near a pool's features are to real images', and how well the teacher reads its targets.

For development: a server has no real images. The distance predicts what a pool is worth to a
student whose head alone is trained, because the head sees features and nothing else.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedmitr_app.models import PatchViT
from fedmitr_app.teacher import Teacher

BATCH = 64
_CONSTANT = 1e-6


@dataclass(frozen=True)
class Likeness:
    """Class-token features of synthetic images beside those of real ones, feature by feature.

    Attributes
    ----------
    distance : float
        Between the two means, in the real ones' standard deviation; mean over features.
    spread : float
        The synthetic ones' standard deviation over the real ones'; mean over features.
    """

    distance: float
    spread: float


def likeness(model: PatchViT, images: Tensor, real: Tensor) -> Likeness:
    """Compare images in the eyes of a model, such as the uploads' average.

    Parameters
    ----------
    images, real : Tensor
        Model input ``[n, C, H, W]`` and ``[m, C, H, W]``, on the model's device; at least two each.

    Returns
    -------
    Likeness
        Without the features that are the same for all real images; of real ones against as many
        others it is near 0 and 1, as far as their number allows (a mean of n moves by 1/sqrt(n)).
    """
    ours, theirs = _features(model, images), _features(model, real)
    deviation = theirs.std(0)
    varied = deviation > _CONSTANT
    apart = (ours.mean(0) - theirs.mean(0)).abs()
    return Likeness(
        float((apart / deviation)[varied].mean()), float((ours.std(0) / deviation)[varied].mean())
    )


def target_share(teacher: Teacher, images: Tensor, targets: Tensor) -> float:
    """Return the share of images ``[n, C, H, W]`` whose likeliest class is their target's.

    ``targets`` are class probabilities ``[n, classes]``; an image goes to all clients, whoever
    served it in the inversion.
    """
    read = [teacher(part).logits.argmax(-1) for part in images.split(BATCH)]
    return float((torch.cat(read) == targets.argmax(-1)).float().mean())


@torch.no_grad()
def _features(model: PatchViT, images: Tensor) -> Tensor:
    return torch.cat([model(part).features.double() for part in images.split(BATCH)])
