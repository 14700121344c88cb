"""Shards made by Ray workers: on all GPUs of a machine or a cluster, or one per CPU core.

Every worker runs the same :class:`ShardMaker`, so that a shard is what it is here, whoever makes
it and however many there are. On CPUs a worker takes one thread: how many there are shows in the
last digits of sums. Ray restarts a worker that dies, and its shard is made again.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from fedmitr_app.errors import BackendError
from fedmitr_app.inversion.accel.ray_cluster import INSTEAD, PACKAGE, cluster, why
from fedmitr_app.inversion.pool_shards import Job, OnStep, Point, Shard, ShardMaker
from fedmitr_app.models import require_compiler

_log = logging.getLogger(__name__)

RESTARTS = 3
"""Of each worker."""
POLL_SECONDS = 0.5
START_SECONDS = 300.0
"""For the first worker to be there, models and all."""
SILENCE_SECONDS = 3600.0
"""Without a step of any worker: then they are given up."""
FETCH_SECONDS = 600.0
"""For a shard that was made to come here."""
STEPS_BETWEEN_REPORTS, SECONDS_BETWEEN_REPORTS = 10, 10.0


def make_on_ray(maker: ShardMaker, jobs: Sequence[Job], on_step: OnStep) -> Iterator[Shard]:
    """Yield each job's shard when it is made, in whatever order.

    Raises
    ------
    BackendError
        If there is no such cluster, no worker can start, or they are lost time and again.
    """
    with cluster(maker.config.ray_address) as (environment, flowers), _sentences():
        again = {"max_restarts": RESTARTS, "max_task_retries": RESTARTS}
        options = {"runtime_env": _seeing_gpus(environment) if flowers else environment, **again}
        # Ray's types don't say what its decorator makes of a class.
        queue = cast(Any, _StepQueue).options(num_cpus=0, **options).remote()
        shared = ray.put(maker.to(torch.device("cpu")))
        devices, takes = _share(maker.device, maker.config.workers, len(jobs), flowers)
        worker = cast(Any, _Worker).options(**options, **takes)
        workers = [worker.remote(shared, device, queue) for device in devices]
        _log.info("%d shard(s) are made by %d Ray worker(s).", len(jobs), len(workers))
        try:
            listener = _StepListener(queue, on_step)
            yield from _work(workers, list(jobs), listener, shipped=not environment)
        finally:
            for actor in (*workers, queue):
                ray.kill(actor)


def _work(
    workers: Sequence[Any], waiting: list[Job], listener: "_StepListener", shipped: bool
) -> Iterator[Shard]:
    starting = {worker.package.remote(): worker for worker in workers}
    running: dict[Any, Any] = {}
    last = time.monotonic()

    def next_job(worker: Any) -> None:
        if waiting:
            running[worker.make.remote(waiting.pop(0))] = worker

    while waiting or running:
        done, _ = ray.wait([*starting, *running], timeout=POLL_SECONDS)
        if listener.listen() or done:
            last = time.monotonic()
        _require_life(bool(running), time.monotonic() - last)
        for reference in done:
            if reference in starting:
                _require_same(ray.get(reference, timeout=FETCH_SECONDS), shipped)
                next_job(starting.pop(reference))
                continue
            shard = ray.get(reference, timeout=FETCH_SECONDS)
            next_job(running.pop(reference))  # nobody waits while the shard is written
            yield shard
    listener.listen()


def _require_life(begun: bool, silence: float) -> None:
    if begun and silence > SILENCE_SECONDS:
        raise BackendError(
            f"Ray's workers have not taken a step for {SILENCE_SECONDS:g} s: lower "
            f"inversion.batch-size, see what else the cluster does, {INSTEAD}"
        )
    if not begun and silence > START_SECONDS:
        free = {kind: ray.available_resources().get(kind, 0) for kind in ("GPU", "CPU")}
        raise BackendError(
            f"No Ray worker could start within {START_SECONDS:g} s ({free['GPU']:g} GPUs and "
            f"{free['CPU']:g} CPUs are free): leave some of them to it, {INSTEAD}"
        )


def _require_same(package: str, shipped: bool) -> None:
    """Refuse workers that would run another copy of this package."""
    if not shipped and Path(package) != PACKAGE:
        raise BackendError(
            f"Ray's workers would run {package} and not {PACKAGE}: start Flower elsewhere, "
            f"{INSTEAD}"
        )


class _StepListener:
    """Passes on each step that workers report, once."""

    def __init__(self, queue: Any, on_step: OnStep) -> None:
        self._queue, self._on_step = queue, on_step
        self._asked: Any = None
        self._steps: Counter[Job] = Counter()

    def listen(self) -> bool:
        """Pass on what is there; whether that was anything."""
        self._asked = self._asked or self._queue.take.remote()
        done, _ = ray.wait([self._asked], timeout=10 * POLL_SECONDS)
        if not done:
            return False
        heard = ray.get(self._asked, timeout=FETCH_SECONDS)
        self._asked = None
        for job, first, points in heard:
            for point in points[max(0, self._steps[job] - first) :]:
                self._on_step(job, point)
            # A worker that was restarted reports all of a job's steps again.
            self._steps[job] = max(self._steps[job], first + len(points))
        return bool(heard)


@ray.remote
class _StepQueue:
    """Holds the steps that workers report until they are fetched."""

    def __init__(self) -> None:
        self._reports: list[tuple[Job, int, list[Point | None]]] = []

    def report(self, job: Job, first: int, points: list[Point | None]) -> None:
        self._reports.append((job, first, points))

    def take(self) -> list[tuple[Job, int, list[Point | None]]]:
        reports, self._reports = self._reports, []
        return reports


@ray.remote
class _Worker:
    """Holds the models on its device, makes one shard after the other."""

    def __init__(self, maker: ShardMaker, device: torch.device, queue: Any) -> None:
        if device.type == "cpu":
            torch.set_num_threads(1)
        self._device = device
        self._maker = maker.to(self._device)
        self._queue = queue

    def package(self) -> str:
        if any(model.compiled for model in self._maker.teacher.models):
            require_compiler(self._device)  # the server's machine may have one, and this none
        return str(PACKAGE)

    def make(self, job: Job) -> Shard:
        points: list[Point | None] = []
        sent_steps, last = 0, time.monotonic()

        def on_step(job: Job, point: Point | None) -> None:
            points.append(point)
            late = time.monotonic() - last > SECONDS_BETWEEN_REPORTS
            if late or len(points) >= STEPS_BETWEEN_REPORTS:
                report()

        def report() -> Any:
            nonlocal sent_steps, last
            # Numbers, read now and then: a GPU waits for whoever reads them.
            plain = [
                None if point is None else {name: float(value) for name, value in point.items()}
                for point in points
            ]
            sent = self._queue.report.remote(job, sent_steps, plain)
            sent_steps, last = sent_steps + len(points), time.monotonic()
            points.clear()
            return sent

        shard = self._maker.make(job, on_step)
        with contextlib.suppress(RayError):  # a lost line of progress is no lost shard
            ray.get(report(), timeout=FETCH_SECONDS)
        here: dict[str, Any] = {
            name: value.cpu() if isinstance(value, torch.Tensor) else value
            for name, value in shard.inverted._asdict().items()
        }
        return shard._replace(inverted=type(shard.inverted)(**here))


def _share(
    device: torch.device, wanted: int, jobs: int, flowers: bool
) -> tuple[list[torch.device], dict[str, float]]:
    """Return each worker's device, as it sees it, and what it takes of the cluster.

    Flower's idle clients hold its CPUs, and what they have of GPUs, to the end of the run: of
    those nothing can be taken. They do nothing any more, so that workers share them unasked.
    """
    gpus = device.type == "cuda"
    whole = int(ray.cluster_resources().get("GPU" if gpus else "CPU", 0))
    if gpus and flowers:  # on this machine; which ones, the worker itself says
        whole = torch.cuda.device_count()
    count = min(wanted or max(whole, 1), jobs)
    if gpus and flowers:
        here = [torch.device("cuda", worker % whole) for worker in range(count)]
    else:
        here = [torch.device(device.type)] * count
    taken = 0 if flowers else 1
    return here, {"num_gpus": taken, "num_cpus": 0} if gpus else {"num_cpus": taken}


def _seeing_gpus(environment: dict[str, Any]) -> dict[str, Any]:
    """Let workers that take no GPU see them all the same: Ray hides them from those."""
    shown = {**environment["env_vars"], "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    return {**environment, "env_vars": shown}


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Turn Ray's errors into one sentence, and give back what a worker itself raised."""
    try:
        yield
    except RayError as error:
        if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
            raise error.cause from error
        raise BackendError(
            f"Ray's workers are lost ({why(error)}): what they had finished is kept; set fewer "
            "inversion.workers, or inversion.backend = 'local', and output.resume = true."
        ) from error
