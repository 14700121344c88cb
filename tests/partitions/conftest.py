"""Tiny datasets on disk, drawn by code."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as PillowImage

NAMES = ["ant", "bee", "cat"]


def picture(shade: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> PillowImage.Image:
    """A one-colour picture whose red channel is ``shade``: which row it was stays readable."""
    colour = shade if mode == "L" else (shade, 0, 255)
    return PillowImage.new(mode, size, colour)


def encoded(shade: int, **kwargs) -> bytes:
    stream = io.BytesIO()
    picture(shade, **kwargs).save(stream, format="PNG")
    return stream.getvalue()


def write_parquet(path: Path, labels: list, *, features: Features | None = None, **columns) -> Path:
    """Row i shows shade i; ``row_group_size`` 4 makes every test cross row groups."""
    cells = [{"bytes": encoded(row), "path": f"{row}.png"} for row in range(len(labels))]
    table = pa.table({"img": cells, "label": labels} | columns)
    if features is not None:
        table = table.cast(features.arrow_schema)
    pq.write_table(table, path, row_group_size=4)
    return path


def class_features(**more) -> Features:
    return Features({"img": Image(), "label": ClassLabel(names=NAMES), **more})


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """30 rows of 3 named classes with a domain column."""
    features = class_features(domain=Value("string"))
    domains = [("art", "photo")[row % 2] for row in range(30)]
    labels = [row % 3 for row in range(30)]
    return write_parquet(tmp_path / "a.parquet", labels, features=features, domain=domains)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """class/image, 4 of each of 2 classes."""
    root = tmp_path / "images"
    for name in ("bee", "ant"):
        (root / name).mkdir(parents=True)
        for row in range(4):
            picture(row, size=(16, 12)).save(root / name / f"{row}.png")
    return root


@pytest.fixture
def labels() -> np.ndarray:
    """200 labels of 5 classes, unevenly."""
    return np.repeat(np.arange(5), [80, 50, 40, 20, 10])
