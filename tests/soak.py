"""Fifty clients, a tenth of which, at random, fail: the run completes, and memory stays bounded.

    python -m tests.soak

Whole runs in processes of their own, each client the real app called by a grid without
processes: one with 10 clients, one with 50. A client that fails raises, sends NaN, says nothing,
or sends somebody else's weights. Prints each run's peak memory and what became of the replies:
the ensemble keeps every accepted client's weights once, and nothing else may grow with the clients.
"""

import argparse
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, Message

from benchmarks.common import print_hardware
from tests.helpers.fake_grid import failure
from tests.helpers.federation import Federation, without_processes

COUNTS = (10, 50)
FAULTS = ("raises", "nan", "silent", "copies")


def soak(clients: int, seed: int, folder: Path) -> None:
    """Do one run in this process and print what became of it."""
    without_processes(setattr)
    torch.set_num_threads(1)
    failing = random.Random(seed).sample(range(clients), clients // 10)
    federation = Federation(folder, clients=clients)
    first: list[dict[str, Array]] = []

    def spoil(number: int, message: Message, reply: Message) -> Message | None:
        if not first:
            first.append(dict(reply.content["arrays"]))
        if number not in failing:
            return reply
        how = FAULTS[failing.index(number) % len(FAULTS)]
        if how == "raises":
            return failure(message, "RuntimeError: out of luck")
        if how == "silent":
            return None
        for name, array in reply.content["arrays"].items():
            value = np.full_like(array.numpy(), np.nan) if how == "nan" else first[0][name].numpy()
            reply.content["arrays"][name] = Array(value)
        return reply

    federation.spoil = spoil
    metrics = federation.run(
        **{
            "model.name": "vit_tiny_patch16_224",
            "model.depth": 4,
            "data.image-size": 32,
            "data.max-train": 20 * clients,
            "partition.kind": "iid",
            "client.epochs": 1,
            "server.timeout": 2.0,
            "server.control": False,
        }
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spooled = sum(file.stat().st_size for file in (folder / "uploads").glob("*.safetensors"))
    told = ", ".join(f"{count} {name}" for name, count in metrics["uploads"].items() if count)
    print(
        f"{clients} clients, {len(failing)} failing: {told}; peak {peak:.0f} MiB, "
        f"the accepted weights {spooled / 2**20:.0f} MiB of it"
    )


def main() -> None:
    """Run each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.clients:
        with tempfile.TemporaryDirectory(prefix="fedmitr-soak-") as folder:
            soak(arguments.clients, arguments.seed, Path(folder) / "run")
        return
    print_hardware()
    for clients in COUNTS:
        words = ["--clients", str(clients), "--seed", str(arguments.seed)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.soak", *words], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        print(done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
