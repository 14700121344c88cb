"""Numbers so small that a CPU slows down over them a hundredfold: none come up in the loops."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedmitr_app.config import ClientConfig
from fedmitr_app.distillation import Distiller
from fedmitr_app.inversion import invert_batch
from fedmitr_app.inversion.pool import PoolData
from fedmitr_app.partitions import ImageSet
from fedmitr_app.training import fit
from fedmitr_app.utils.randomness import generator
from tests.helpers.tiny import (
    CLASSES,
    SPEC,
    distillation_config,
    inversion_config,
    random_images,
    random_targets,
    tiny_teacher,
    tiny_vit,
)

SINGLE = torch.float32


class Subnormals(TorchDispatchMode):
    """Counts them in all that operations give and write, but for memory merely handed out."""

    def __init__(self) -> None:
        super().__init__()
        self.found = self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        # What was read was given before, unless it is written in place, as by fused Adam.
        for value in tree_leaves((given, args)):
            single = isinstance(value, torch.Tensor) and value.dtype == SINGLE
            if single and "empty" not in str(function):
                sizes = value.abs()
                self.found += int(((sizes > 0) & (sizes < torch.finfo(SINGLE).tiny)).sum())
                self.numbers += value.numel()
        return given


def test_what_is_counted():
    with Subnormals() as seen:
        torch.full((3,), 1e-30) * torch.tensor([1e-10, 1e-20, 1.0])
    assert seen.found == 1 and seen.numbers > 3
    mean = torch.full((3,), 1.2e-38)
    with Subnormals() as seen:
        mean.mul_(0.5)
    assert seen.found == 6  # written and given


@pytest.mark.parametrize("ensemble", ["loop", "stacked"])
def test_none_come_up_in_inversion_distillation_or_training(ensemble):
    teacher, images = tiny_teacher(dtype=SINGLE), random_images(8, dtype=SINGLE)
    targets = random_targets(8, dtype=SINGLE)
    student = tiny_vit(17, SINGLE)
    labels = torch.arange(8) % CLASSES
    shard = ImageSet((255 * SPEC.denormalise(images)).byte(), labels, tuple("abcde"))
    with Subnormals() as seen:
        # Long enough for momentum of 0.5 to vanish, without total variation to feed it.
        config = inversion_config(iterations=300, tv=0.0, ensemble=ensemble)
        made = invert_batch(teacher, images, targets, config, generator(0, "test"))
        mask = torch.zeros(8, 16, dtype=torch.bool).scatter_(1, made.keep_idx, True)
        distiller = Distiller(student, teacher, distillation_config(steps=40), generator(1, "test"))
        distiller.run(PoolData(made.images, targets, mask), 40)
        training = replace(ClientConfig(), epochs=10, batch_size=4)
        fit(student, shard, training, generator=generator(2, "test"), device=torch.device("cpu"))
    assert seen.numbers > 1e6
    assert seen.found == 0
