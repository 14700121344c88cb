"""Three tiny ViTs that clients may have sent, and settings that fuse them in a moment."""

import pytest
import torch
from safetensors.torch import save_file

from fedmitr_app.config import DistillationConfig, InversionConfig, TeacherConfig
from fedmitr_app.methods import MethodSettings
from fedmitr_app.uploads import Upload
from tests.helpers.tiny import tiny_vit

CPU = torch.device("cpu")


def settings(seed=0, distillation=None, **inversion):
    small = {"images": 11, "batch_size": 4, "iterations": 4, "stops": (0.5,), "candidates": 2}
    return MethodSettings(
        TeacherConfig(probe_images=8),
        InversionConfig(**{**small, **inversion}),
        DistillationConfig(**{"steps": 7, "batch_size": 4, **(distillation or {})}),
        seed,
    )


@pytest.fixture
def uploads(tmp_path):
    found = []
    for number in range(3):
        path = tmp_path / f"client-{number:03d}.safetensors"
        save_file(tiny_vit(number, torch.float32).vit.state_dict(), path)
        found.append(Upload(path.stem, 10 * (number + 1), path))
    return found


@pytest.fixture
def theta0():
    return tiny_vit(40, torch.float32)
