"""A tiny ViT and a shard of given labels."""

import torch

from fedmitr_app.config import ModelConfig
from fedmitr_app.models import InputSpec, build_vit
from fedmitr_app.partitions import ImageSet

SPEC = InputSpec(size=8, channels=1, mean=(0.5,), std=(0.5,))


def tiny_vit(classes: int = 3):
    config = ModelConfig(patch_size=4, width=16, depth=1, heads=2)
    return build_vit(config, SPEC, classes, seed=0)


def shard_of(labels: list[int], classes: int = 3) -> ImageSet:
    """Class c is a bright square whose place tells the class."""
    targets = torch.tensor(labels, dtype=torch.int64)
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 60, (len(labels), 1, 8, 8), generator=draws, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 4 * (label % 2) :, 4 * (label // 2) :] += 150
    return ImageSet(images, targets, tuple(map(str, range(classes))))


def problem(classes: int = 4, held: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % held
    features = torch.randn(60, 5, generator=draws)
    features[:, 0] += 2.0 * labels
    features[:, 1] -= 1.5 * (labels == 1)
    return features, labels
