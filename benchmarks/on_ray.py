"""Ray's workers against one process: the same pool, and what they cost and gain."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.common import Results, random_teacher
from fedmitr_app.config import InversionConfig
from fedmitr_app.inversion import Pool, PoolRequest, make_pool
from fedmitr_app.teacher import Teacher

WORKERS, SHARDS, IMAGES, ITERATIONS = 2, 4, 128, 100


def on_ray(results: Results) -> None:
    """Make one pool here, on one thread, and by two workers of a Ray of their own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as every worker: the bits depend on it
    teacher = random_teacher("small", 28, 5, torch.device("cpu"))
    local = replace(InversionConfig(), iterations=ITERATIONS, candidates=1, batch_size=IMAGES)
    ways = {"local": local, "ray": replace(local, backend="ray", workers=WORKERS)}
    case = f"{SHARDS} shards of {IMAGES}, {ITERATIONS} iterations"
    taken, pools = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in ways.items():
            pools[name] = Pool(Path(folder) / name, teacher.models[0].num_patches)
            taken[name], first = _fill(pools[name], teacher, config)
            results.add("ray", case, f"{name}: to the first news", first, "s")
            results.add("ray", case, f"{name}: whole pool", taken[name], "s")
        loaded = [pools[name].load() for name in ways]
    torch.set_num_threads(threads)
    same = all(
        torch.equal(getattr(loaded[0], part), getattr(loaded[1], part))
        for part in ("images", "targets", "mask")
    )
    faster = taken["local"] / taken["ray"]
    results.add("ray", case, f"{WORKERS} workers: local time over theirs", faster, "")
    results.add("ray", case, "the same pool to the last bit (1: yes)", float(same), "")


def _fill(pool: Pool, teacher: Teacher, config: InversionConfig) -> tuple[float, float]:
    """Return the seconds until the pool was made, and until the first news of it."""
    heard: list[float] = []
    started = time.perf_counter()
    make_pool(
        teacher,
        pool,
        config,
        PoolRequest(SHARDS * IMAGES, 0),
        device=torch.device("cpu"),
        on_step=lambda job, point: heard.append(time.perf_counter()),
    )
    return time.perf_counter() - started, heard[0] - started
