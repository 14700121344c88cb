"""A real deployment on loopback: SuperLink with TLS, authenticated SuperNodes, as processes."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PROJECT = Path(__file__).parents[2]
CLASSES = ("circle", "cross", "line")


def free_port() -> int:
    """Return a port that nobody listens on.

    It lies below those that systems give to outgoing connections: one of those could be
    taken again before the process that it is meant for has started.
    """
    while True:
        with socket.socket() as held, contextlib.suppress(OSError):
            held.bind(("127.0.0.1", random.randint(15_000, 32_000)))
            return held.getsockname()[1]


def copy_project(target: Path) -> Path:
    """Copy what ``flwr run`` needs, so that nothing is written into the source tree."""
    target.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "fedmitr_app", target / "fedmitr_app", ignore=ignored)
    for name in ("pyproject.toml", "LICENSE", "README.md", ".gitignore"):
        shutil.copy(PROJECT / name, target)
    return target


def call_flwr(
    words: Sequence[str], project: Path, env: Mapping[str, str], check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Call Flower's command line in a project; it must succeed, unless nobody checks."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "flwr"), *words],
        cwd=project,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process politely, then it and all children that outlived it at once."""
    for sent, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, sent)
            process.wait(seconds)


def draw_shard(folder: Path, images: int, seed: int) -> None:
    """Make an image folder of small colour pictures that tell the classes apart."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for image in range(images):
            pixels = rng.integers(0, 60, (8, 8, 3)) + 80 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{image}.png")


class Deployment:
    """Runs the scripts of ``deploy/`` as their page says, all on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.own_port = folder, free_port(), free_port()
        self.project = copy_project(folder / "project")
        self.bin = Path(sys.executable).parent
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {
            **os.environ,
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        self.certificates, self.loopback = folder / "certificates", folder / "loopback"
        self.script("certificates.sh", "authority", str(folder / "authority"))
        hosts = ("127.0.0.1", "localhost")
        words = (str(folder / "authority"), str(self.certificates), *hosts)
        self.script("certificates.sh", "server", *words)
        (folder / "flwr").mkdir()
        # The operator is on the server; a stranger has nothing but the port and ca.crt.
        self._tell_flwr("ours", self.own_port, self.loopback / "loopback.crt")
        self._tell_flwr("public", self.port, self.certificates / "ca.crt")
        self.sign_app()

    def _tell_flwr(self, name: str, port: int, ca: Path) -> None:
        with (self.folder / "flwr" / "config.toml").open("a") as config:
            config.write(f'[superlink.{name}]\naddress = "127.0.0.1:{port}"\n')
            config.write(f'root-certificates = "{ca}"\n')

    def script(self, name: str, *words: str) -> None:
        """Run a script of ``deploy/`` to its end."""
        command = [str(PROJECT / "deploy" / name), *words]
        subprocess.run(command, check=True, env=self.env, timeout=60)

    def sign_app(self) -> None:
        """Sign what stands in the project, as a reviewer whom the nodes trust."""
        key, self.app, self.trusted = (
            self.folder / name for name in ("reviewer", "app.fab", "trusted.yaml")
        )
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
        subprocess.run(words, check=True, timeout=60)
        self.flwr("build")
        next(self.project.glob("*.fab")).rename(self.app)
        self.script("signed_app.py", "sign", str(self.app), str(key), "reviewer")
        public = key.with_suffix(".pub").read_text().strip()
        self.trusted.write_text(f"reviewer: '{public}'\n")

    def start_server(self) -> None:
        """Start the SuperLink and the proxy before it, and wait until it answers."""
        told = {
            "FEDMITR_APP": str(self.app),
            "FEDMITR_CERTIFICATES": str(self.certificates),
            "FEDMITR_PORT": str(self.port),
            "FEDMITR_SUPERLINK_PORT": str(self.own_port),
        }
        self._start("server", "server.sh", told)
        self.wait_for(self._answers, 120, "the SuperLink")

    def make_key(self, name: str) -> Path:
        """Make a node's key pair; the public half ends in ``.pub``."""
        key = self.folder / f"{name}.key"
        words = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)]
        subprocess.run(words, check=True, timeout=60)
        return key

    def start_node(self, name: str, key: Path, data: Path) -> None:
        """Start a node that trains on an image folder, and runs the signed app alone."""
        told = {
            "FEDMITR_TRUSTED": str(self.trusted),
            "FEDMITR_SUPERLINK": f"127.0.0.1:{self.port}",
            "FEDMITR_CA": str(self.certificates / "ca.crt"),
            "FEDMITR_KEY": str(key),
            "FEDMITR_CLIENT": name,
            "FEDMITR_DATA": str(data),
            "FEDMITR_MODELS": f"{data}-models",
            "FEDMITR_PORT": str(free_port()),
        }
        self._start(name, "supernode.sh", told)

    def nodes(self) -> dict[str, str]:
        """Return the registered nodes' ids, each with what the SuperLink says of it."""
        listed = json.loads(self.flwr("supernode", "list", "ours", "--format", "json").stdout)
        return {str(node["node-id"]): node["status"] for node in listed["nodes"]}

    def nodes_online(self) -> int:
        """Count the nodes that the SuperLink knows to be there."""
        return list(self.nodes().values()).count("online")

    def run(self, app: str, run_config: str) -> str:
        """Begin a run of an app and return its id."""
        words = ("run", app, "ours", "--run-config", run_config, "--format", "json")
        return str(json.loads(self.flwr(*words).stdout)["run-id"])

    def status(self, run_id: str) -> str:
        """Return what ``flwr ls`` says of a run."""
        listed = self.flwr("ls", "--run-id", run_id, "ours", "--format", "json").stdout
        return json.loads(listed)["runs"][0]["status"]

    def run_log(self, run_id: str) -> str:
        """Return what a run has logged."""
        return self.flwr("log", run_id, "ours", "--show").stdout

    def listening(self) -> set[tuple[str, int]]:
        """Return each address and port where a process of this deployment listens.

        Addresses are as /proc/net/tcp has them: hexadecimal.
        """
        started = {process.pid for process in self.processes.values()}
        mark = f"FLWR_HOME={self.env['FLWR_HOME']}\0".encode()
        sockets = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # Flower's own children begin sessions of their own, nginx forgets its environment.
                ours = os.getsid(int(process.name)) in started
                if not ours and mark not in (process / "environ").read_bytes():
                    continue
                for entry in (process / "fd").iterdir():
                    with contextlib.suppress(OSError):
                        sockets.add(os.readlink(entry))
        found = set()
        for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
            rows = table.read_text().splitlines()[1:] if table.exists() else []
            for row in (line.split() for line in rows):
                if row[3] == "0A" and f"socket:[{row[9]}]" in sockets:
                    address, port = row[1].split(":")
                    found.add((address, int(port, 16)))
        return found

    def flwr(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Call Flower's command line."""
        return call_flwr(words, self.project, self.env, check)

    def _answers(self) -> bool:
        assert self.processes["server"].poll() is None, self.log("server")
        # Asked for JSON, the command line exits with 0 whether or not anybody was there.
        said = self.flwr("ls", "ours", "--format", "json", check=False).stdout
        return bool(json.loads(said or "{}").get("success"))

    def log(self, name: str) -> str:
        """Return a process's output."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def wait_for(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Ask every second; if it takes too long, fail and show what every process said."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{name}:\n{self.log(name)[-5000:]}" for name in self.processes)
                pytest.fail(f"waited {seconds:g} s for {what}\n{logs}")
            time.sleep(1.0)

    def kill(self, name: str) -> None:
        """Kill a process and all its children at once, as a power cut would."""
        os.killpg(self.processes.pop(name).pid, signal.SIGKILL)

    def stop(self) -> None:
        """End everything: nodes first, or they would look for the SuperLink."""
        for name in reversed(self.processes):
            end(self.processes[name])

    def _start(self, name: str, script: str, told: Mapping[str, Any]) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [str(PROJECT / "deploy" / script)],
                cwd=self.folder,
                env={**self.env, **told},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that it can be ended with all its children
            )
