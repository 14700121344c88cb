"""What runs a transformer block, compiled for every block, model and number of tokens.

Whole models compiled would be compiled K times and anew for each number of patches. Blocks of one
architecture are the same code on other weights, and sizes that vary become symbols: a handful of
compilations in each process serve the inversion, the teacher's answers and the student's steps.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from fedmitr_app.errors import ConfigError

# Past torch's limit of 8 it would stop compiling. With and without gradients, mask, training,
# autocast and a second thread, each first for one size, then for any, there may be more; ours is
# a guess with room to spare.
RECOMPILE_LIMIT = 64


@functools.cache
def compile_once(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``run`` compiled, the same for all who ask; the work is done as it is called."""
    # By its older name, an alias later on: torch 2.6 knows no recompile_limit.
    config = torch._dynamo.config
    config.cache_size_limit = max(config.cache_size_limit, RECOMPILE_LIMIT)
    return torch.compile(run)


def require_compiler(device: torch.device) -> None:
    """Compile something small, to learn now, and not after the clients' training, if that works.

    Raises
    ------
    ConfigError
        If it doesn't: on a CPU torch needs a C++ compiler, on a GPU Triton.
    """
    try:
        torch.compile(torch.nn.functional.gelu)(torch.zeros(2, device=device))
    except Exception as error:
        inner = getattr(error, "inner_exception", error)
        reason = (str(inner).strip() or type(inner).__name__).splitlines()[0]
        raise ConfigError.bad_value(
            "server.compile",
            True,
            f"false, because torch.compile doesn't work on {device} here ({reason})",
        ) from error
