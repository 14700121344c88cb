"""docs/explanation/uploads-that-fuse.md: what it tells a client of one's own to do, done."""

import re
from pathlib import Path

import timm
import torch

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "uploads-that-fuse.md"


def test_the_pages_lines_make_an_upload_of_class_means():
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[1]
    before, after = code.split("...\n")
    draws = torch.Generator().manual_seed(0)
    images, labels, classes = torch.randn(6, 3, 32, 32, generator=draws), torch.arange(6) % 2, 3
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=classes, depth=1)
    names = {"torch": torch, "images": images, "labels": labels, "classes": classes}
    names["model"] = model.eval()
    exec(before, names)
    value = names["loss"](model(images), labels)
    value.backward()
    assert value.isfinite() and not model.head.bias.grad[2] and model.head.bias.grad[:2].all()
    exec(after, names)
    rows = model.head.weight
    assert not rows[2].any()
    mean = names["features"][labels == 1].mean(0)
    assert torch.cosine_similarity(rows[1], mean, dim=0) > 0.999
