"""The Ray that makes shards: Flower's own, a cluster's, or one that is started for them."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

import fedmitr_app
from fedmitr_app.errors import BackendError

_log = logging.getLogger(__name__)

PACKAGE = Path(fedmitr_app.__file__).parent
INSTEAD = "or set inversion.backend = 'local'."
SECONDS_WITHOUT_RAY = 24 * 3600
"""How long this process goes on when Ray's control service is gone (choice).

Ray ends its driver without a word after 60 s (ray-project/ray, issue 43280), at times also one
that has left it: a run would be lost while its student learns. That shards stop coming, the
caller sees by itself.
"""


@contextlib.contextmanager
def cluster(address: str) -> Iterator[tuple[dict[str, Any], bool]]:
    """Join the Ray that is there, Flower's or a cluster's, or start one.

    Gives the workers' runtime environment, and whether the Ray is Flower's.
    """
    # What this process can import, a worker can: Flower may have installed packages for the run.
    paths = dict.fromkeys([str(PACKAGE.parent), *filter(None, sys.path)])
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
    if ray.is_initialized():
        if address:
            _log.warning("inversion.ray-address is not used: Flower's Ray is there already.")
        yield environment, True
        return
    os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = str(SECONDS_WITHOUT_RAY)
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _connecting(address):
        if address:
            _reach(address)
            # Other machines get this very package.
            ray.init(address, runtime_env={"py_modules": [str(PACKAGE)]}, **quietly)
            environment = {}
        else:
            # On the loopback address: else whoever reaches this machine reaches its Ray.
            quietly |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            ray.init("local", runtime_env=environment, **quietly)
    try:
        yield environment, False
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _connecting(address: str) -> Iterator[None]:
    """Keep Flower's way of being stopped, which Ray replaces; tell what went wrong."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except Exception as error:  # of many kinds, a bare Exception among them
        where = f"at inversion.ray-address = {address!r}" if address else "on this machine"
        raise BackendError(
            f"Ray can't be had {where} ({why(error)}): start it by 'ray start --head', {INSTEAD}"
        ) from error
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _reach(address: str) -> None:
    """Raise ``OSError`` if nobody listens there: Ray itself tries for minutes."""
    host, colon, port = address.rpartition("://")[2].partition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10.0).close()


def why(error: BaseException) -> str:
    """Return the last line of an error's text, where Ray puts the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
