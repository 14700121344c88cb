"""Tiny models, teachers and configurations; every value that a test relies on stands here."""

import torch
from timm.models.vision_transformer import VisionTransformer

from fedmitr_app.config import DistillationConfig, InversionConfig
from fedmitr_app.inversion import Pool
from fedmitr_app.models import InputSpec, PatchViT
from fedmitr_app.teacher import Teacher
from fedmitr_app.utils.randomness import seeded_init

SPEC = InputSpec(size=16, channels=1, mean=(0.4,), std=(0.3,))
CLASSES = 5


def tiny_vit(seed: int = 0, dtype: torch.dtype = torch.float64, spec: InputSpec = SPEC) -> PatchViT:
    """16 patches of 4x4 pixels; weights large enough for every part to matter."""
    with seeded_init(seed, "tiny"):
        vit = VisionTransformer(
            img_size=spec.size,
            patch_size=4,
            in_chans=spec.channels,
            num_classes=CLASSES,
            embed_dim=16,
            depth=2,
            num_heads=2,
            mlp_ratio=2.0,
        )
    shake(vit, seed)
    return PatchViT(vit.to(dtype), spec).eval()


def shake(module: torch.nn.Module, seed: int, scale: float = 0.25) -> None:
    """Add noise to every parameter: no zero biases, no unit norms, nothing small by init."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=rng))


def tiny_teacher(
    combine: str = "mean-logits", clients: int = 3, dtype: torch.dtype = torch.float64
) -> Teacher:
    models = tuple(tiny_vit(seed, dtype).requires_grad_(False) for seed in range(clients))
    rng = torch.Generator().manual_seed(99)
    weights = 0.2 + torch.rand(clients, CLASSES, generator=rng, dtype=dtype)
    return Teacher(models, combine, weights)


def contents(pool: Pool) -> list[float]:
    """Every number in the pool, to tell two apart; not the headers, which name the seed."""
    data = pool.load()
    return torch.cat([part.flatten() for part in (data.images, data.targets, data.mask)]).tolist()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def random_images(
    count: int, seed: int = 0, dtype: torch.dtype = torch.float64, spec: InputSpec = SPEC
) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    shape = (count, spec.channels, spec.size, spec.size)
    return spec.normalise(torch.rand(shape, generator=rng, dtype=dtype))


def random_targets(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, CLASSES, generator=rng, dtype=dtype).softmax(-1)


def inversion_config(**changes) -> InversionConfig:
    values = {
        "images": 8,
        "batch_size": 4,
        "iterations": 8,
        "initial_images": "procedural",
        "candidates": 1,
        "schedule": "sparse",
        "stops": (2.0, 5.0),
        "drop": (0.3,),
        "learning_rate": 0.05,
        "beta1": 0.5,
        "beta2": 0.99,
        "tv": 1e-2,
        "roll": 0.25,
        "flip": 0.5,
        "targets": "balanced",
        "teachers_per_image": 0,
        "loss": "ensemble",
        "gradient": "joint",
        "ensemble": "loop",
    }
    return InversionConfig(**{**values, **changes})


def distillation_config(**changes) -> DistillationConfig:
    values = {
        "steps": 6,
        "repeats": 1,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "weight_decay": 0.05,
        "warmup": 0.0,
        "temperature": 2.0,
        "hard": 0.25,
        "beta": 0.5,
        "gamma": 0.7,
        "tau": 1.5,
        "relabel": "image",
        "student": "merged",
        "train": "all",
        "last_blocks": 1,
        "roll": 0.125,
        "flip": 0.0,
    }
    return DistillationConfig(**{**values, **changes})
