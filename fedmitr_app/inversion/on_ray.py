"""Shards made by Ray workers: on all GPUs of a machine or a cluster, or one per CPU core.

Every worker runs the same :class:`ShardMaker`, so that a shard is what it is here, whoever makes
it and however many there are. On CPUs a worker takes one thread: how many there are shows in the
last digits of sums. Ray restarts a worker that dies, and its shard is made again.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

import fedmitr_app
from fedmitr_app.errors import BackendError
from fedmitr_app.inversion.make_shard import Job, OnStep, Point, Shard, ShardMaker

_log = logging.getLogger(__name__)

RESTARTS = 3
"""Of each worker."""
POLL_SECONDS = 0.5
SILENCE_SECONDS = 1800.0
"""Without a step of any worker: then they are given up."""
STEPS_BETWEEN_NEWS = 10
PACKAGE = Path(fedmitr_app.__file__).parent


def make_on_ray(maker: ShardMaker, jobs: Sequence[Job], on_step: OnStep) -> Iterator[Shard]:
    """Yield each job's shard when it is made, in whatever order.

    Raises
    ------
    BackendError
        If there is no such cluster, no device is free, or workers are lost time and again.
    """
    config = maker.config
    with _cluster(config.ray_address) as environment, _sentences():
        options = _options(maker.device, config.workers, len(jobs))
        count = options.pop("count")
        again = {"max_restarts": RESTARTS, "max_task_retries": RESTARTS}
        news = _News.options(runtime_env=environment, num_cpus=0, **again).remote()
        shared = ray.put(maker.to(torch.device("cpu")))
        make = _Worker.options(runtime_env=environment, **options, **again)
        idle = [make.remote(shared, maker.device.type, news) for _ in range(count)]
        _log.info("%d shard(s) are made by %d Ray worker(s).", len(jobs), count)
        try:
            yield from _work(idle, list(jobs), news, on_step)
        finally:
            for actor in (*idle, news):
                ray.kill(actor)


def _work(workers: list[Any], waiting: list[Job], news: Any, on_step: OnStep) -> Iterator[Shard]:
    idle, running, silence = list(workers), {}, 0.0
    told: Counter[Job] = Counter()
    while waiting or running:
        while waiting and idle:
            worker, job = idle.pop(), waiting.pop(0)
            running[worker.make.remote(job)] = worker
        done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
        heard = _tell(news, on_step, told)
        silence = 0.0 if done or heard else silence + POLL_SECONDS
        if silence > SILENCE_SECONDS:
            raise BackendError(
                f"Ray's workers have not taken a step for {SILENCE_SECONDS:g} s: see what else "
                "its cluster does, or set inversion.backend = 'local'."
            )
        for reference in done:
            idle.append(running.pop(reference))
            yield ray.get(reference)


def _tell(news: Any, on_step: OnStep, told: Counter[Job]) -> bool:
    """Pass on the steps that weren't told before; whether there was any news."""
    try:
        heard = ray.get(news.take.remote(), timeout=10 * POLL_SECONDS)
    except GetTimeoutError:
        return False
    for job, first, points in heard:
        for point in points[max(0, told[job] - first) :]:  # a worker that restarts tells all again
            on_step(job, point)
        told[job] = max(told[job], first + len(points))
    return bool(heard)


@ray.remote
class _News:
    """What the workers tell while they work."""

    def __init__(self) -> None:
        self._told: list[tuple[Job, int, Sequence[Point]]] = []

    def tell(self, job: Job, first: int, points: Sequence[Point]) -> None:
        self._told.append((job, first, points))

    def take(self) -> list[tuple[Job, int, Sequence[Point]]]:
        told, self._told = self._told, []
        return told


@ray.remote
class _Worker:
    """Holds the models on its device, makes one shard after the other."""

    def __init__(self, maker: ShardMaker, device: str, news: Any) -> None:
        if device == "cpu":
            torch.set_num_threads(1)
        self._maker = maker.to(torch.device(device))
        self._news = news

    def make(self, job: Job) -> Shard:
        first, points = 0, list[Point]()

        def on_step(job: Job, point: Point) -> None:
            points.append(point)
            if len(points) >= STEPS_BETWEEN_NEWS:
                tell()

        def tell() -> None:
            nonlocal first
            # Numbers, read now and then: a GPU waits for whoever reads them.
            told = [{name: float(value) for name, value in each.items()} for each in points]
            self._news.tell.remote(job, first, told)
            first += len(points)
            points.clear()

        shard = self._maker.make(job, on_step)
        tell()
        here = {
            name: value.cpu() if isinstance(value, torch.Tensor) else value
            for name, value in shard.inverted._asdict().items()
        }
        return shard._replace(inverted=type(shard.inverted)(**here))


def _options(device: torch.device, wanted: int, jobs: int) -> dict[str, Any]:
    """Return how many workers to start, and what each takes of the cluster.

    In Flower's simulation its idle clients hold the CPUs: workers then ask for none.
    """
    kind = "GPU" if device.type == "cuda" else "CPU"
    whole, free = ray.cluster_resources().get(kind, 0), ray.available_resources().get(kind, 0)
    if kind == "GPU" and free < 1:
        raise BackendError(
            f"Ray has {free:g} of its {whole:g} GPU(s) free: give clients less of them "
            "(client-resources-num-gpus), or set inversion.backend = 'local'."
        )
    count = min(wanted or max(int(free if kind == "GPU" else whole), 1), jobs)
    if kind == "GPU":
        return {"count": min(count, int(free)), "num_gpus": 1, "num_cpus": 0}
    return {"count": count, "num_cpus": 1 if free >= count else 0}


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[dict[str, Any]]:
    """Join the Ray that is there, a cluster's or Flower's, or start one; give workers' setting."""
    environment = {"env_vars": {"PYTHONPATH": str(PACKAGE.parent)}}
    if ray.is_initialized():
        if address:
            _log.warning("inversion.ray-address is not used: this process has its Ray already.")
        yield environment
        return
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            # Other machines get this very package.
            ray.init(address, runtime_env={"py_modules": [str(PACKAGE)]}, **quietly)
            environment = {}
        else:
            ray.init("local", include_dashboard=False, **quietly)
    except (ConnectionError, OSError, RuntimeError, ValueError, RayError) as error:
        raise BackendError(
            f"inversion.ray-address = {address!r} leads to no Ray cluster "
            f"({' '.join(str(error).split())[:200]}): start one with 'ray start --head', or leave "
            "the address empty."
        ) from error
    try:
        yield environment
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Turn Ray's errors into one sentence, and give back what a worker itself raised."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise BackendError(
            f"Ray's workers are lost ({' '.join(str(error).split())[:200]}): what they had "
            "finished is kept; set fewer inversion.workers, or inversion.backend = 'local', and "
            "output.resume = true."
        ) from error
