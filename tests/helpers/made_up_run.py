"""A run folder, and made-up results of a run."""

from pathlib import Path

import pytest
import torch

from fedmitr_app.config import default_run_config
from fedmitr_app.report.data import ClientRow, Curves, PoolSample, ReportData
from fedmitr_app.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(str(tmp_path / "run"), seed=3)


def make_pool(images: int = 3, channels: int = 1, size: int = 8, patch: int = 2) -> PoolSample:
    grid = size // patch
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(images, grid, grid, generator=generator)
    return PoolSample(
        images=torch.rand(images, channels, size, size, generator=generator),
        patch_size=patch,
        titles=[str(index) for index in range(images)],
        kept=attention.flatten(1).topk(grid).indices,
        attention=attention,
    )


def make_data(**changes: object) -> ReportData:
    values = {
        "config": {**default_run_config(), "seed": 3, "partition.alpha": 0.5},
        "defaults": default_run_config(),
        "metrics": {
            "accuracy": {
                "student": 0.85,
                "teacher": 0.884,
                "fedavg": 0.295,
                "control": 0.796,
                "clients": {"client-0": 0.21, "client-1": 0.28},
            },
            "inversion": {"flop_ratio": 0.41, "images": 512, "diversity": 0.63},
            "seconds": {"training": 60.0, "total": 200.0},
        },
        "environment": {"python": "3.12", "gpus": [], "packages": {"torch": "2.0"}},
        "clients": [
            ClientRow("client-0", 800, 0.5, 0.9, 0.21),
            ClientRow("client-1", 700, 0.6, 0.9, 0.28),
            ClientRow("client-2", None, status="rejected", reason="its weights hold NaN"),
        ],
        "class_names": ["zero", "one"],
        "label_matrix": [[800, 0], [10, 690]],
        "label_matrix_clients": ["client-0", "client-1"],
        "pool": make_pool(),
        "inversion": Curves([0, 1, 2], {"loss": [3, 2, 1], "confidence": [0.1, 0.5, 0.9]}, [1]),
        "distillation": Curves([0, 1], {"loss": [2.0, 1.0]}),
        "test_images": 1000,
        "asked": 3,
        "simulated": True,
    }
    return ReportData(**(values | changes))
