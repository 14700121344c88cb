"""Shards of a pool on Ray."""

import torch

from fedmitr_app.inversion import Pool, PoolRequest, make_pool
from tests.helpers.tiny import inversion_config, tiny_teacher

CPU = torch.device("cpu")


IMAGES, ITERATIONS, DRAWS = 10, 25, 2


def fill(folder, on_step=lambda job, point: None, **changes):
    settings = {"iterations": ITERATIONS, "stops": (0.5,), "candidates": DRAWS, "batch_size": 4}
    config = inversion_config(**{**settings, **changes})
    pool = Pool(folder, 16)
    teacher = tiny_teacher("prior-probed", dtype=torch.float32)
    made = make_pool(teacher, pool, config, PoolRequest(IMAGES, 0), device=CPU, on_step=on_step)
    return pool, made
