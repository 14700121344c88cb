"""Run a grid's missing parts, several at once, and go on where an earlier run stopped."""

import logging
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from fedmitr_app.config import flatten
from fedmitr_app.errors import ConfigError, FedmitrError
from fedmitr_app.experiments.auto_precision import with_auto_resolved
from fedmitr_app.experiments.cell import cell_name, code_name, failed, read_cell, run_cell
from fedmitr_app.experiments.federate import train_federation, trained_by, uploads_name
from fedmitr_app.experiments.grid import Cell, Grid
from fedmitr_app.methods import known_methods
from fedmitr_app.utils.progress import duration

ENDED = (
    "a worker process was ended from outside, perhaps for want of memory: give the command again, "
    "with fewer --workers"
)
Job = tuple[str, Callable[..., Any], tuple[Any, ...]]


def run_grid(
    grid: Grid,
    results: Path,
    *,
    device: torch.device,
    workers: int = 1,
    train: bool = True,
    log: Callable[[str], object] = print,
) -> list[dict[str, Any]]:
    """Return every cell's result, in the grid's order; only what is missing is computed.

    What fails, also a federation's training, says so in its cells and leaves the others alone.

    Parameters
    ----------
    results : Path
        Uploads and cells are kept there; a result is on disk as soon as it is there.
    device : torch.device
        Where to train and fuse.
    workers : int
        Processes at once, each on its share of torch's threads; 1 stays in this process.
    train : bool
        Whether missing uploads may be trained here.

    Raises
    ------
    ConfigError
        If uploads are missing and may not be trained, naming the folder.
    """
    (results / "cells").mkdir(parents=True, exist_ok=True)
    (results / "uploads").mkdir(exist_ok=True)
    (results / "answers").mkdir(exist_ok=True)
    grid = with_auto_resolved(grid, results / "decided.json", device)
    names = [cell_name(cell) for cell in grid.cells]
    # Two rows may say the same: it is computed once.
    cells = dict(zip(names, grid.cells, strict=True))
    there: dict[str, Any] = {name: read_cell(cell, results, device) for name, cell in cells.items()}
    missing = {name: cell for name, cell in cells.items() if there[name] is None}
    # Rows that train their clients alike share the uploads.
    needed = {uploads_name(cell.federation, cell.config): cell for cell in missing.values()}
    trainings: dict[str, Job] = {}
    for name, cell in needed.items():
        folder, federation = results / "uploads" / name, cell.federation
        if folder.is_dir():
            continue
        if not train:
            raise ConfigError(
                f"{folder} is missing: leave out --no-training, or give the folder of results "
                "that has these uploads."
            )
        words = f"clients of {federation.group}, seed {federation.seed}"
        trainings[name] = (words, train_federation, (federation, cell.config, folder, device))
    log(
        f"{grid.title}: {len(trainings)} federation(s) to train, {len(missing)} of "
        f"{len(grid.cells)} cells to run, {workers} at once"
    )
    trained = dict(zip(trainings, _all(trainings.values(), workers, log), strict=True))
    code, fusions = code_name(), {}
    for name, cell in missing.items():
        error = trained.get(uploads_name(cell.federation, cell.config))
        if isinstance(error, Exception):
            there[name] = failed(cell, error)
        else:
            fusions[name] = (_words(cell), run_cell, (cell, results, device, code))
    there |= dict(zip(fusions, _all(fusions.values(), workers, log), strict=True))
    found = []
    for name, cell, clients in zip(names, grid.cells, trained_by(grid.cells), strict=True):
        result = there[name]
        if isinstance(result, Exception):
            result = failed(cell, result)
        # The same result may stand under another name in another experiment.
        flat = flatten(cell.config)
        curve = {key: flat[key] for key in (grid.curve.x, *grid.curve.lines)} if grid.curve else {}
        what = {"row": cell.row.name, "attack": cell.attack, "attackers": cell.attackers}
        what["trained_by"] = clients
        found.append({**result, **what, **curve})
    return found


def _words(cell: Cell) -> str:
    attack = f", {cell.attack} by {cell.attackers}" if cell.attackers else ""
    return f"{cell.row.name}, {cell.federation.group}{attack}, seed {cell.federation.seed}"


def _all(jobs: Collection[Job], workers: int, log: Callable[[str], object]) -> list[Any]:
    """Run the jobs, tell each one that is over, return their results in order."""
    started, results = time.monotonic(), [None] * len(jobs)
    jobs = list(jobs)
    for done, (index, result) in enumerate(_finished(jobs, workers), 1):
        results[index] = result
        seconds = time.monotonic() - started
        left = seconds / done * (len(jobs) - done)
        remaining = f", {duration(left)} left" if done < len(jobs) else ""
        log(f"{done}/{len(jobs)} {jobs[index][0]}{_outcome(result)}{remaining}")
    return results


def _finished(jobs: Collection[Job], workers: int) -> Iterable[tuple[int, Any]]:
    """Yield each job's place and its result, or the exception that it ended in."""
    if workers == 1 or len(jobs) < 2:
        for index, (_, work, arguments) in enumerate(jobs):
            try:
                result = work(*arguments)
            except Exception as error:  # the other jobs are not lost over it
                result = error
            yield index, result
        return
    threads = max(1, torch.get_num_threads() // workers)
    context = get_context("spawn")  # a fork would inherit OpenMP's dead threads
    with ProcessPoolExecutor(workers, context, _prepare, (threads,)) as pool:
        waiting: dict[Future[Any], int] = {
            pool.submit(work, *arguments): index for index, (_, work, arguments) in enumerate(jobs)
        }
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    ended = future.exception()
                    if isinstance(ended, BrokenProcessPool):
                        ended = FedmitrError(ENDED)
                    yield waiting.pop(future), ended or future.result()
        except BaseException:  # also Ctrl-C: nothing new may begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    known_methods()  # those of other packages too: this process is a new one
    logging.getLogger("fedmitr_app").setLevel(logging.WARNING)


def _outcome(result: Any) -> str:
    if isinstance(result, Exception):
        return f": failed: {result}"
    if not isinstance(result, dict):
        return ": trained"
    if result["status"] != "ok":
        return f": {result['status']}"
    return f": {100 * result['accuracy']:.1f} % in {duration(result['total_seconds'])}"
