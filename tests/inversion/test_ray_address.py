"""A Ray cluster that was started by hand makes the same pool."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray

from fedmitr_app.inversion.accel import on_ray
from tests.helpers.ray_shards import fill
from tests.helpers.tiny import contents


@pytest.fixture
def head(tmp_path):
    """Start one on this machine, as ``ray start --head`` on another; give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray_command = Path(sys.executable).with_name("ray")
    command = [ray_command, "start", "--head", "--num-cpus=2", f"--port={port}", "--block"]
    command += ["--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    # Sockets lie there: their names must be short.
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        log = (tmp_path / "head.log").open("w+")
        process = subprocess.Popen(
            [*command, f"--temp-dir={folder}"],
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 90
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                time.sleep(0.3)
            else:
                log.seek(0)
                pytest.fail(f"Ray did not start:\n{log.read()}")
            yield f"127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


@pytest.mark.slow
def test_a_cluster_at_an_address_makes_the_same_pool(head, tmp_path, monkeypatch):
    assert not ray.is_initialized()
    honest, _ = fill(tmp_path / "a")
    seen, plain = [], on_ray._require_same

    def require_same(package: str, shipped: bool) -> None:
        seen.append((ray.get_runtime_context().gcs_address, shipped))
        plain(package, shipped)

    monkeypatch.setattr(on_ray, "_require_same", require_same)
    pool, _ = fill(tmp_path / "b", backend="ray", workers=2, ray_address=head)
    assert contents(pool) == contents(honest)
    # By workers of that cluster. (On one machine they may find this copy before the one sent.)
    port = head.rpartition(":")[2]  # Ray calls this machine by another of its addresses
    ports = [address.rpartition(":")[2] for address, shipped in seen if shipped]
    assert ports and set(ports) == {port}  # the other one may come too late
    assert not ray.is_initialized()
