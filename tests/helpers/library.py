"""What the library's tests fuse."""

import torch
from timm.models.vision_transformer import VisionTransformer

CLIENTS, CLASSES, EXAMPLES = 3, 3, (6, 12, 9)
SMALL = {
    "teacher.probe-images": 8,
    "inversion.images": 10,
    "inversion.batch-size": 4,
    "inversion.iterations": 2,
    "distillation.steps": 5,
    "distillation.batch-size": 4,
}


def vit(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": CLASSES}
    return VisionTransformer(**{**sizes, "embed_dim": 16, "depth": 2, "num_heads": 2, **changes})


def states(count=CLIENTS):
    return [vit(seed + 1).state_dict() for seed in range(count)]
