"""A Ray that dies must not take the process with it that asked for it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITH_A_RAY_THAT_DIES = """
import os, signal, subprocess, sys, time
from fedmitr_app.inversion.accel import ray_cluster
ray_cluster.SECONDS_WITHOUT_RAY = {seconds}
with ray_cluster.cluster(""):
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "gcs_server"], capture_output=True, text=True
    )
    (service,) = found.stdout.split()
    os.kill(int(service), signal.SIGKILL)
    time.sleep(15)
    print("goes on", flush=True)
    os._exit(0)  # leaving a dead Ray takes seconds
"""


@pytest.mark.parametrize(("seconds", "goes_on"), [(2, False), (None, True)])
def test_how_long_a_process_outlives_its_ray_is_ours_to_say(seconds, goes_on):
    # Two seconds show that Ray listens to it: else the day that we set might not count either.
    code = WITH_A_RAY_THAT_DIES.format(seconds=seconds or "ray_cluster.SECONDS_WITHOUT_RAY")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ("goes on" in done.stdout) == goes_on, done.stderr[-2000:]
    assert (done.returncode == 0) == goes_on, done.stderr[-2000:]
