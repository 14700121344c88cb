"""Every random draw comes from a generator derived from (run seed, who, stage).

Derived, not shared: a client's draws don't depend on how many others there are,
and a stage's draws don't depend on what an earlier stage consumed.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive_seed(seed: int, *scope: str | int) -> int:
    """Return a 63-bit seed that depends on the run seed and every part of ``scope``.

    >>> derive_seed(0, "client-1", "training") == derive_seed(0, "client-1", "training")
    True
    >>> derive_seed(0, "client-1", "training") == derive_seed(0, "client-2", "training")
    False
    """
    text = "\x1f".join([str(seed), *map(str, scope)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *scope: str | int) -> torch.Generator:
    """Return a CPU generator seeded by :func:`derive_seed`.

    On the CPU whatever the compute device, so that the same seed draws the same
    numbers with and without a GPU.
    """
    return torch.Generator().manual_seed(derive_seed(seed, *scope))


@contextlib.contextmanager
def seeded_init(seed: int, *scope: str | int) -> Iterator[None]:
    """Seed torch's global generator inside the block only.

    For code of other libraries that takes no generator, such as the weight
    initialisation in timm; the caller's global state is restored afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also seed the GPUs, whose state isn't restored.
        torch.default_generator.manual_seed(derive_seed(seed, *scope))
        yield
