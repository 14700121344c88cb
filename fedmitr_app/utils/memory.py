"""What a device's memory takes: weights, and work in as few parts as possible."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

_log = logging.getLogger(__name__)
T = TypeVar("T")


SHARE_FOR_WEIGHTS = 0.5
"""Of a GPU's free memory: what the clients' weights may take, beside the work (choice)."""


def room_for(size: int, device: torch.device) -> bool:
    """Say whether a device may hold that many bytes of weights; main memory always may.

    There they are mapped from disk.
    """
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size <= SHARE_FOR_WEIGHTS * free


class Halving:
    """Halve a batch, and again, for as long as the device runs out of memory.

    What is done must give for the parts what it gives for the whole. Parts stay as small as
    they once had to be: at least half as large as memory would take, and nothing is guessed.

    Parameters
    ----------
    doing : str
        What the log line says is done, such as "inverting".
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._size: int | None = None

    def over(self, count: int, work: Callable[[slice], T]) -> list[T]:
        """Return what ``work`` gives for each part's rows, in order; the first one begins at 0.

        Raises
        ------
        torch.OutOfMemoryError
            If a single row takes too much.
        """
        while True:
            size = min(self._size or count, count)
            try:
                return [work(slice(first, first + size)) for first in range(0, count, size)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self._size = -(-size // 2)
            # Outside the except block, which would keep what was computed alive.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            _log.warning(
                "out of memory: %s %d images at a time from here on.", self._doing, self._size
            )
