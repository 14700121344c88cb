"""Every method by its name."""

from collections.abc import Callable

from fedmitr_app.methods.afl import afl
from fedmitr_app.methods.averaging import fedavg, fedavg_uniform, merged
from fedmitr_app.methods.best_client import best_client
from fedmitr_app.methods.co_boosting import co_boosting
from fedmitr_app.methods.dense import dense
from fedmitr_app.methods.dense_inversion import dense_inversion
from fedmitr_app.methods.ensemble import ensemble
from fedmitr_app.methods.fedcgs import fedcgs
from fedmitr_app.methods.fedmitr import fedmitr
from fedmitr_app.methods.fused import Fused
from fedmitr_app.methods.random_patches import random_patches
from fedmitr_app.methods.real_images import real_images
from fedmitr_app.methods.task import Task
from fedmitr_app.methods.uninverted import noise, uninverted

Method = Callable[[Task], Fused]

METHODS: dict[str, Method] = {
    "fedmitr": fedmitr,
    "dense-inversion": dense_inversion,
    "random-patches": random_patches,
    "uninverted": uninverted,
    "noise": noise,
    "fedavg": fedavg,
    "fedavg-uniform": fedavg_uniform,
    "merged": merged,
    "best-client": best_client,
    "ensemble": ensemble,
    "dense": dense,
    "co-boosting": co_boosting,
    "fedcgs": fedcgs,
    "afl": afl,
    "real-images": real_images,
}
