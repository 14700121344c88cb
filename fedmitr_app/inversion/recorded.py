"""Steps that a GPU records once and replays: one launch in place of thousands.

A step launches some 35 kernels for each block of each client, or of all if they are stacked, and
Python is slower at that than a GPU is at a small model's products. Between two stops a step is
the same work on the same memory, so that it can be a CUDA graph: one for each number of patches.
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
LEAST_TIMES = 6
"""Fewer repetitions are not worth a recording, which costs about two (choice)."""


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
    """Say whether steps are to be recorded and can be.

    Not those of images that finish early, whose number changes too often; nor those of weights
    that visit the device, which lie elsewhere each time.
    """
    possible = device.type in DEVICES and not (config.early_stop or config.teachers_per_step)
    if config.cuda_graphs and possible and teacher.visits:
        _log.info("inversion's steps are not recorded: the clients' weights visit %s.", device)
    return config.cuda_graphs and possible and not teacher.visits


class Recorder(Generic[T]):
    """Does the same work again and again, recorded where that pays.

    After each :meth:`restart` once as it is: that makes whatever is made once, and finds out how
    large a part of the work memory takes. The second time it is recorded, and from then on
    replayed: none of its Python runs again. If it can't be recorded, for want of memory or
    because something in it can't be, it goes on as it is.

    Parameters
    ----------
    device : torch.device
        Where it works.
    records : bool
        False: the work is done as it is, always.
    """

    def __init__(self, device: torch.device, records: bool) -> None:
        self._device, self._records = device, records
        self.restart(0)

    def restart(self, times: int) -> None:
        """From here on the work is on other memory, ``times`` times; what was recorded is gone."""
        self._recording: tuple[Callable[[], None], T] | None = None
        self._warm, self._pays = False, times >= LEAST_TIMES

    def __call__(self, work: Callable[[], T]) -> T:
        """Do the work once and return what it gives; between restarts it must be the same.

        It reads what is new each time from tensors that are overwritten in place, and waits for
        nothing. What it returns is overwritten by the next time.
        """
        # Not kept: what holds this recorder and does its work would be held by it in turn, and a
        # recording's memory until Python looks for such circles.
        if self._warm and self._recording is None and self._pays and self._records:
            self._try(work)
        self._warm = True
        if self._recording is None:
            return work()
        replay, found = self._recording
        replay()
        return found

    def _try(self, work: Callable[[], T]) -> None:
        try:
            self._recording = record(work, self._device)
        except RuntimeError as error:  # torch's of every kind, no memory among them
            reason, lacked_memory = _why(error)
            # With fewer patches there may be the memory.
            self._pays, self._records = False, lacked_memory
        if self._recording is None:
            # Outside the except block, which would keep what was captured alive.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            _log.warning("inversion goes on without a recording (%s).", reason)


def _why(error: RuntimeError) -> tuple[str, bool]:
    """Return a reason in a line, and whether it is memory.

    The end of a capture complains of its having failed alone; what failed stands before it.
    """
    cause = error.__context__ or error
    line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return line, isinstance(cause, torch.OutOfMemoryError)


def record(work: Callable[[], T], device: torch.device) -> tuple[Callable[[], None], T]:
    """Record ``work`` without doing it; return what does it, and what it then gives."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                found = work()
        finally:
            torch.cuda.set_stream(stream)  # which an older torch forgets when a capture fails
    return graph.replay, found
