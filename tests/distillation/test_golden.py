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
from fedmitr_app.teacher import ClientModel, Teacher
from fedmitr_app.utils.randomness import generator
from tests.helpers.tiny import distillation_config, inversion_config, tiny_vit

GOLDEN = {
    "inversion loss": [2.06022, 1.92549, 2.16814, 1.6278, 1.93592, 1.94699, 2.07568, 1.84145],
    "target probability": [
        0.234929,
        0.248721,
        0.225505,
        0.213284,
        0.189887,
        0.276519,
        0.292647,
        0.21489,
    ],
    "survivors of the first image": [1, 6, 7, 11, 12, 14, 15],
    "pixels": [0.672622, 0.897415],
    "distillation loss": [2.02869, 1.37037, 1.07583, 0.981141, 0.836476, 0.887087],
    "student": [-0.35566, 0.632012, 0.927917, -0.0452559, 0.860602],
}


def golden_run(folder: Path) -> dict[str, list[float]]:
    """Three clients, two batches of four images with two stops, six distillation steps."""
    clients = [ClientModel(f"c{k}", tiny_vit(k, torch.float32), 10 * (k + 1)) for k in range(3)]
    settings = TeacherConfig(combine="num-examples")
    teacher = Teacher.build(clients, settings, lambda: pytest.fail("no priors to read"))
    config = inversion_config(
        iterations=8,
        stops=(2.0, 4.0),
        candidates=2,
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
