"""Sparse model inversion: from the teacher to a pool of synthetic images."""

from fedmitr_app.inversion.diversity import diversity
from fedmitr_app.inversion.invert import Inverted, invert_batch
from fedmitr_app.inversion.make_pool import Made, PoolRequest, make_pool, steps_per_image
from fedmitr_app.inversion.pool import Place, Pool, PoolData
from fedmitr_app.inversion.recorded import require_recordable
from fedmitr_app.inversion.schedule import Schedule
from fedmitr_app.inversion.starts import starting_images

__all__ = [
    "Inverted",
    "Made",
    "Place",
    "Pool",
    "PoolData",
    "PoolRequest",
    "Schedule",
    "diversity",
    "invert_batch",
    "make_pool",
    "require_recordable",
    "starting_images",
    "steps_per_image",
]
