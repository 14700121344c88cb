"""What learning costs: a student's steps, and a client's training."""

import time
from dataclasses import replace

import torch

from benchmarks.common import CLASSES, Results, random_vit, synchronise
from benchmarks.inversion import Size
from fedmitr_app.config import ClientConfig, DistillationConfig
from fedmitr_app.distillation import Distiller
from fedmitr_app.errors import ConfigError
from fedmitr_app.inversion import draw_initial_images
from fedmitr_app.inversion.pool import PoolData
from fedmitr_app.models import require_compiler
from fedmitr_app.partitions import ImageSet
from fedmitr_app.training import fit
from fedmitr_app.utils.randomness import generator

STEPS = 24


def distillation(results: Results, size: Size, device: torch.device) -> None:
    """Steps a second: the teacher asked every time, answers kept, features kept too."""
    teacher = size.teacher(device)
    model, rng = teacher.models[0], generator(0, "benchmark")
    count = 2 * size.batch
    pool = PoolData(
        draw_initial_images("procedural", count, model.spec, rng).to(device),
        torch.rand(count, CLASSES, generator=rng).softmax(-1).to(device),
        (torch.rand(count, model.num_patches, generator=rng) < 0.3).to(device),
    )
    plain = replace(DistillationConfig(), steps=STEPS, batch_size=size.batch, repeats=1)
    cases = {
        "teacher asked at every step": plain,
        "answers kept for 8 passes": replace(plain, repeats=8),
        "head alone, answers and features kept": replace(
            plain, repeats=8, train="head", relabel="none"
        ),
    }
    compiled = "answers kept for 8 passes, all compiled"
    try:
        require_compiler(device)
    except ConfigError as error:
        print(f"{compiled}: not measured. {error}")
    else:
        cases[compiled] = cases["answers kept for 8 passes"]
    for name, config in cases.items():
        student = random_vit(size.model, size.image, device, 99, size.precision)
        if name == compiled:
            for each in (student, *teacher.models):
                each.compiled = True
            Distiller(student, teacher, config, generator(0, "warm-up")).run(pool, STEPS)
        distiller = Distiller(student, teacher, config, generator(0, "steps"))
        synchronise(device)
        started = time.perf_counter()
        distiller.run(pool, STEPS)
        synchronise(device)
        rate = STEPS / (time.perf_counter() - started)
        results.add("distillation", str(size), name, rate, "steps/s", **size.of)


def training(results: Results, size: Size, device: torch.device) -> None:
    """A client's images a second, augmentation included."""
    model = random_vit(size.model, size.image, device, 0, size.precision)
    rng = generator(0, "benchmark")
    shape = (8 * size.batch, model.spec.channels, size.image, size.image)
    images = torch.randint(0, 256, shape, generator=rng).to(torch.uint8)
    labels = torch.arange(len(images)) % CLASSES
    shard = ImageSet(images, labels, tuple(map(str, range(CLASSES))))
    config = replace(ClientConfig(), epochs=2, batch_size=size.batch)
    synchronise(device)
    started = time.perf_counter()
    fit(model, shard, config, generator=rng, device=device)
    synchronise(device)
    rate = config.epochs * len(labels) / (time.perf_counter() - started)
    results.add("training", str(size), "images", rate, "/s", **size.of)
