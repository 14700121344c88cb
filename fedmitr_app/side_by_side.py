"""Pieces of work at once, each on its share of a CPU's cores."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def side_by_side(tasks: Sequence[Callable[[], T]], device: torch.device) -> list[T]:
    """Run the tasks in threads of their own and return what they return, in their order.

    Small models keep one core busy and a second one half busy: two students on one thread
    each are done sooner than one after the other on two. A GPU is better filled, and its memory
    is not shared out: there they run one after the other.

    Parameters
    ----------
    tasks : Sequence[Callable[[], T]]
        Independent of each other; what they share they only read.
    device : torch.device
        Where they compute.

    Raises
    ------
    Exception
        What the first task that failed raised, once all of them are over.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads < len(tasks):
        return [task() for task in tasks]

    def run(task: Callable[[], T]) -> T:
        torch.set_num_threads(threads // len(tasks))  # OpenMP's number belongs to the thread
        return task()

    try:
        with ThreadPoolExecutor(len(tasks), thread_name_prefix="side-by-side") as pool:
            futures = [pool.submit(run, task) for task in tasks]
        return [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)  # MKL's number, and that of new threads, does not
