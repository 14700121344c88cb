"""Model, data and training of an ordinary Flower project: nothing here is one-shot."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


def build_model() -> VisionTransformer:
    """A small ViT for grey 8x8 images of ten digits."""
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=8,
        patch_size=2,
        in_chans=1,
        num_classes=10,
        embed_dim=48,
        depth=2,
        num_heads=3,
        mlp_ratio=2.0,
    )


def load_split(test: bool) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and labels; every fifth image is for testing."""
    digits = load_digits()
    chosen = (np.arange(len(digits.target)) % 5 == 0) == test
    images = torch.tensor(digits.images[chosen] / 16, dtype=torch.float32)
    return (images.unsqueeze(1) - 0.5) / 0.5, torch.tensor(digits.target[chosen])


def load_partition(partition_id: int, num_partitions: int) -> tuple[Tensor, Tensor]:
    """One client's share: sorted by label, so that each client knows few digits."""
    images, labels = load_split(test=False)
    mine = labels.argsort(stable=True).tensor_split(num_partitions)[partition_id]
    return images[mine], labels[mine]


def train(
    model: VisionTransformer, images: Tensor, labels: Tensor, epochs: int, lr: float
) -> float:
    """Train in place and return the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    order = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=order).split(32):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return loss.item()


@torch.no_grad()
def test(model: VisionTransformer, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy."""
    model.eval()
    return (model(images).argmax(1) == labels).float().mean().item()
