"""A client's training on its own shard, and what the server's distillation shares of it."""

from fedmitr_app.training.augment import augment
from fedmitr_app.training.fit import fit, parameter_groups
from fedmitr_app.training.losses import client_loss
from fedmitr_app.training.moments import class_moments
from fedmitr_app.training.schedule import warmup_cosine
from fedmitr_app.uploads import set_class_means

__all__ = [
    "augment",
    "class_moments",
    "client_loss",
    "fit",
    "parameter_groups",
    "set_class_means",
    "warmup_cosine",
]
