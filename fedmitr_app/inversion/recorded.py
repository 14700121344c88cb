"""Steps that a GPU records once and replays: one launch in place of thousands.

A step launches some 35 kernels for each block of each client, and Python is slower at that than
a GPU is at a small model's products. Between two stops a step is the same work on the same
memory, so that it can be a CUDA graph: one for each number of patches.
"""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from fedmitr_app.config import InversionConfig
from fedmitr_app.errors import ConfigError
from fedmitr_app.teacher import Teacher

_log = logging.getLogger(__name__)
T = TypeVar("T")

DEVICES = ("cuda",)
"""What can record."""


def require_recordable(config: InversionConfig, device: torch.device) -> None:
    """Refuse ``inversion.cuda_graphs`` where there is nothing to record on.

    Raises
    ------
    ConfigError
        On a CPU.
    """
    if config.cuda_graphs and device.type not in DEVICES:
        raise ConfigError.bad_value(
            "inversion.cuda-graphs", True, f"false, because the server works on {device}"
        )


def recordable(config: InversionConfig, teacher: Teacher, device: torch.device) -> bool:
    """Say whether steps are to be recorded; weights that visit the device lie elsewhere."""
    return config.cuda_graphs and device.type in DEVICES and not teacher.visits


class Recorded(Generic[T]):
    """Does the same work on the same memory, again and again.

    The first time as it is: that makes whatever is made once, and finds out how large a part of
    the work memory takes. The second time it is recorded, and from then on replayed: none of its
    Python runs again. If it can't be recorded, for want of memory or because something in it
    can't be, it goes on as it is.

    Parameters
    ----------
    work : callable
        Reads what is new each time from tensors that are overwritten in place, and waits for
        nothing. What it returns is overwritten by the next time.
    device : torch.device
        Where it works.
    """

    def __init__(self, work: Callable[[], T], device: torch.device) -> None:
        self._work, self._device = work, device
        self._warm = self._failed = False
        self._recording: tuple[Callable[[], None], T] | None = None

    def __call__(self) -> T:
        """Do the work once and return what it gives."""
        if not self._warm or self._failed:
            self._warm = True
            return self._work()
        if self._recording is None:
            try:
                self._recording = record(self._work, self._device)
            except RuntimeError as error:  # torch's of every kind, no memory among them
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                _log.warning("inversion goes on without a recording (%s).", reason)
                self._failed = True
                return self._work()
        replay, found = self._recording
        replay()
        return found


def record(work: Callable[[], T], device: torch.device) -> tuple[Callable[[], None], T]:
    """Record ``work`` without doing it; return what does it, and what it then gives."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        found = work()
    return graph.replay, found
