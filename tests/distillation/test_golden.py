"""A tiny run from teacher to student, with the numbers it gave when it was last looked at.

Everything is drawn from fixed seeds and every setting stands here, so that a changed number
means changed mathematics. If the change is meant, print the new numbers with
``python -m tests.distillation.test_golden`` and say in the commit why they moved.
"""

import tempfile
from pathlib import Path

import pytest
import torch

from fedmitr_app.config import TeacherConfig
from fedmitr_app.distillation import Distiller
from fedmitr_app.inversion import Pool, PoolRequest, make_pool
from fedmitr_app.randomness import generator
from fedmitr_app.teacher import ClientModel, Teacher
from tests.inversion.tiny import distillation_config, inversion_config, tiny_vit

GOLDEN = {
    "inversion loss": [2.06625, 1.93033, 2.17494, 1.63388, 1.94218, 1.9564, 2.07767, 1.84424],
    "target probability": [
        0.234929, 0.248817, 0.225502, 0.213435, 0.189712, 0.275272, 0.291976, 0.210041,
    ],
    "survivors of the first image": [1, 6, 7, 11, 12, 14, 15],
    "pixels": [0.672336, 0.901328],
    "distillation loss": [1.76233, 1.22233, 1.28064, 0.940702, 0.875013, 0.894458],
    "student": [0.267906, 0.873712, 0.836741, -0.292426, 1.03929],
}


def golden_run(folder: Path) -> dict[str, list[float]]:
    """Three clients, two batches of four images with two stops, six distillation steps."""
    clients = [
        ClientModel(f"c{k}", tiny_vit(k, torch.float32), 10 * (k + 1)) for k in range(3)
    ]
    settings = TeacherConfig(combine="num-examples")
    teacher = Teacher.build(clients, settings, lambda: pytest.fail("no priors to read"))
    config = inversion_config(
        iterations=8,
        stops=(2.0, 4.0),
        candidates=2,
        similarity=0.01,
        tv=1e-4,
        learning_rate=0.06,
        roll=0.0625,
        flip=0.0,
    )
    pool = Pool(folder, 16)
    request = PoolRequest(8, seed=0)
    made = make_pool(teacher, pool, config, request, device=torch.device("cpu")).batches
    student = tiny_vit(40, torch.float32)
    distiller = Distiller(student, teacher, distillation_config(), generator(0, "distillation"))
    data = pool.load()
    losses = distiller.run(data, 6)
    return {
        "inversion loss": made[0].curves["loss"],
        "target probability": made[1].curves["confidence"],
        "survivors of the first image": [float(index) for index in made[0].keep_idx[0]],
        "pixels": [float(data.images.mean()), float(data.images.std())],
        "distillation loss": losses,
        "student": student(data.images[:1]).logits[0].tolist(),
    }


def test_the_numbers_are_those_of_last_time(tmp_path):
    found = golden_run(tmp_path)
    assert found.keys() == GOLDEN.keys()
    for name, numbers in GOLDEN.items():
        assert found[name] == pytest.approx(numbers, rel=1e-3, abs=1e-4), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for name, numbers in golden_run(Path(scratch)).items():
            print(f'    "{name}": [{", ".join(f"{number:.6g}" for number in numbers)}],')
