"""Sparse model inversion: from the teacher to a pool of synthetic images."""

from fedmitr_app.inversion.diversity import diversity
from fedmitr_app.inversion.initial_images import draw_initial_images
from fedmitr_app.inversion.invert import Inverted, invert_batch
from fedmitr_app.inversion.make_pool import Made, PoolRequest, make_pool, steps_per_image
from fedmitr_app.inversion.pool import Place, Pool, PoolData
from fedmitr_app.inversion.schedule import Schedule

__all__ = [
    "Inverted",
    "Made",
    "Place",
    "Pool",
    "PoolData",
    "PoolRequest",
    "Schedule",
    "diversity",
    "draw_initial_images",
    "invert_batch",
    "make_pool",
    "steps_per_image",
]
