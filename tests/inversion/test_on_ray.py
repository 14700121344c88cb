"""Shards made by Ray workers are those made here, whatever happens to the workers."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
import ray
import torch

from fedmitr_app.errors import BackendError, TrainingError
from fedmitr_app.inversion import pool_shards
from fedmitr_app.inversion.accel import on_ray
from tests.helpers.ray_shards import CPU, DRAWS, ITERATIONS, fill
from tests.helpers.tiny import contents, inversion_config, tiny_teacher


@pytest.fixture(scope="module")
def cluster():
    """One Ray for all tests, as Flower's simulation has one."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def workers():
    """Return the process ids of this test's Ray workers that make shards."""
    parents, names = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            names[int(process.name)] = (process / "cmdline").read_bytes()
            status = (process / "status").read_text()
        except OSError:  # it ended just now
            continue
        parents[int(process.name)] = int(status.partition("PPid:")[2].split()[0])

    def ours(process):
        while process > 1:
            if process == os.getpid():
                return True
            process = parents.get(process, 0)
        return False

    return [process for process in parents if b"ray::_Worker" in names[process] and ours(process)]


def kill(processes):
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_an_address_without_a_cluster_is_one_sentence(tmp_path):
    assert not ray.is_initialized()  # this test comes first
    with pytest.raises(BackendError, match="can't be had at inversion.ray-address = '127.0.0.1:1'"):
        fill(tmp_path, backend="ray", ray_address="127.0.0.1:1")


def test_the_pool_is_the_same_and_so_are_the_steps(cluster, tmp_path):
    here, there = [], []
    honest, made = fill(tmp_path / "a", lambda job, point: here.append((job, dict(point))))
    pool, other = fill(
        tmp_path / "b",
        lambda job, point: there.append((job, dict(point))),
        backend="ray",
        workers=2,
    )
    assert contents(pool) == contents(honest) and pool.provenance() == honest.provenance()
    assert [part.curves for part in other.batches] == [part.curves for part in made.batches]
    assert other.dropped == made.dropped == 0
    for job in {job for job, _ in here}:
        mine = [point for which, point in here if which == job]
        assert len(mine) == DRAWS + ITERATIONS
        assert [point for which, point in there if which == job] == mine


def test_a_lost_workers_shard_is_made_again(cluster, tmp_path):
    honest, _ = fill(tmp_path / "a")
    steps, killed = [], []

    def on_step(job, point):
        steps.append(job)
        if not killed:
            killed.extend(workers())
            kill(killed)

    pool, _ = fill(tmp_path / "b", on_step, backend="ray", workers=2)
    assert killed and contents(pool) == contents(honest)
    # What was reported twice counts once.
    assert len(steps) == 3 * (DRAWS + ITERATIONS)


def test_workers_that_are_lost_time_and_again_are_one_sentence(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "RESTARTS", 0)

    def on_step(job, point):
        kill(workers())

    with pytest.raises(BackendError, match="Ray's workers are lost .* inversion.workers") as raised:
        fill(tmp_path, on_step, backend="ray", iterations=400)
    assert "\n" not in str(raised.value)


def test_what_a_worker_raises_is_raised_here(cluster):
    class Broken(pool_shards.ShardMaker):
        def make(self, job, on_step):
            raise TrainingError.diverged("inversion", 9.0)

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    maker = Broken(tiny_teacher(dtype=torch.float32), inversion_config(), 0, CPU)
    with pytest.raises(TrainingError, match="inversion.learning-rate = 9 made inversion leave"):
        list(on_ray.make_on_ray(maker, [pool_shards.Job(0, 2)], lambda job, point: None))


def test_workers_that_never_begin_are_given_up(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "START_SECONDS", 1.0)
    monkeypatch.setattr(on_ray, "_share", lambda *rest: ([CPU], {"num_cpus": 64}))
    with pytest.raises(BackendError, match="No Ray worker could start within 1 s"):
        fill(tmp_path, backend="ray")


def test_workers_without_a_sign_of_life_are_given_up():
    on_ray._require_life(True, on_ray.SILENCE_SECONDS - 1)
    with pytest.raises(BackendError, match="have not taken a step for 3600 s: .*batch-size"):
        on_ray._require_life(True, on_ray.SILENCE_SECONDS + 1)


def test_workers_of_another_copy_of_the_package_are_refused():
    on_ray._require_same("/elsewhere/fedmitr_app", shipped=True)
    on_ray._require_same(str(on_ray.PACKAGE), shipped=False)
    with pytest.raises(BackendError, match="would run /elsewhere/fedmitr_app and not "):
        on_ray._require_same("/elsewhere/fedmitr_app", shipped=False)


def test_there_are_no_more_workers_than_jobs_or_cores(cluster):
    assert on_ray._share(CPU, 0, 9, True) == ([CPU] * 2, {"num_cpus": 0})
    assert on_ray._share(CPU, 0, 1, False) == ([CPU], {"num_cpus": 1})
    assert on_ray._share(CPU, 3, 9, False) == ([CPU] * 3, {"num_cpus": 1})


def test_each_worker_has_a_gpu_and_flowers_clients_share_theirs(cluster, monkeypatch):
    gpu, first, second = (torch.device(name) for name in ("cuda", "cuda:0", "cuda:1"))
    # Ray shows a worker the one that it took.
    assert on_ray._share(gpu, 4, 9, False) == ([gpu] * 4, {"num_gpus": 1, "num_cpus": 0})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert on_ray._share(gpu, 0, 9, True) == ([first, second], {"num_gpus": 0, "num_cpus": 0})
    assert on_ray._share(gpu, 3, 9, True)[0] == [first, second, first]
    assert on_ray._share(gpu, 0, 1, True)[0] == [first]


def test_a_worker_that_takes_no_gpu_sees_them_all(cluster):
    @ray.remote(num_cpus=0, num_gpus=0)
    class Looking:
        def see(self):
            return os.environ.get("CUDA_VISIBLE_DEVICES")

    machine = {"env_vars": {"CUDA_VISIBLE_DEVICES": "0,1"}}
    hidden, shown = (
        Looking.options(runtime_env=environment).remote()
        for environment in (machine, on_ray._seeing_gpus(machine))
    )
    assert ray.get([hidden.see.remote(), shown.see.remote()], timeout=60) == ["", "0,1"]
