"""A method in the background, in a process of its own."""

import contextlib
import copy
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedmitr_app.errors import FedmitrError, RunFolderError
from fedmitr_app.methods.registry import METHODS
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.settings import MethodSettings
from fedmitr_app.methods.task import Task
from fedmitr_app.models import PatchViT
from fedmitr_app.uploads import Upload, WeightCheck
from fedmitr_app.utils.files import load_tensors, save_tensors

_log = logging.getLogger("fedmitr_app")

INITIAL, FUSED = "initial.safetensors", "fused.safetensors"
_PROBED = "probed"
_LAST_WORDS = 60.0
"""Seconds that are waited for who hears a process out that is over: a disk may hang."""

Result = Callable[[], MethodResult | None]


@contextlib.contextmanager
def run_in_background(method: str, task: Task) -> Iterator[Result]:
    """Run a method while the ``with`` block does something else; give a way to its result.

    Small models leave a second core half idle: two of them on one thread each are done sooner
    than one after the other on two. Threads of one process would wait for each other's Python.
    On a GPU, which one of them fills, or a single CPU thread, the method runs when its result
    is asked for.

    Parameters
    ----------
    method : str
        Its name in ``METHODS``; one that makes a model.
    task : Task
        The other process reads the uploads itself and keeps its files in the task's folder;
        its lines and records come back.

    Yields
    ------
    Callable[[], MethodResult | None]
        Waits for the result, whose teacher is left out. None, after a warning that says why,
        if the method failed or its process died: what goes on beside it isn't lost with it.
    """
    threads = torch.get_num_threads()
    if task.device.type != "cpu" or threads < 2:
        yield lambda: _here(method, task)
        return
    context = get_context("spawn")  # a fork would inherit OpenMP's dead threads
    ours, theirs = context.Pipe(duplex=False)
    share, settings = threads // 2, task.settings
    settings = replace(settings, inversion=replace(settings.inversion, backend="local"))
    # Weights go by files: tensors that are sent share memory, of which a container has little.
    try:
        task.folder.mkdir(parents=True, exist_ok=True)
        known = {_PROBED: task.probed, **task.model.vit.state_dict()}
        save_tensors(task.folder / INITIAL, known, {})
    except (OSError, RunFolderError) as error:  # such as a full disk: the main method may do
        _warn(method, str(error))
        yield lambda: None
        return
    shape = copy.deepcopy(task.model).to("meta")
    order = _Order(
        method, shape, task.uploads, task.weight_checks, settings, task.folder, task.label, share
    )
    process = context.Process(target=_work, args=(theirs, order), name="background", daemon=True)
    listener = _Listener(ours, method, task)
    process.start()
    theirs.close()  # else its end would never be heard here
    listener.start()
    torch.set_num_threads(threads - share)
    try:
        yield listener.result
    finally:
        torch.set_num_threads(threads)
        listener.wanted = False
        process.terminate()  # over already, unless nobody asked for the result
        process.join()
        listener.join(_LAST_WORDS)  # what it still writes is the task's: not after its folder's end


def _here(method: str, task: Task) -> MethodResult | None:
    try:
        return METHODS[method](task)
    except Exception as error:  # such as a GPU out of memory: the global model is there already
        _warn(method, str(error))
        return None


def _warn(method: str, reason: str) -> None:
    _log.warning("The method %r in the background gave nothing: %s", method, reason)


class _Order(NamedTuple):
    """What the other process is told; no weights."""

    method: str
    model: PatchViT
    """Its shape, on the meta device."""
    uploads: Sequence[Upload]
    weight_checks: Sequence[WeightCheck]
    """What was found of their weights, beside uploads perhaps that the task is without."""
    settings: MethodSettings
    folder: Path
    label: str
    threads: int


class _Listener(threading.Thread):
    """Hears the other process out: its lines go to the log, its records to the task's."""

    def __init__(self, pipe: Connection, method: str, task: Task) -> None:
        super().__init__(name="background", daemon=True)
        self._pipe, self._method, self._task = pipe, method, task
        self._fused: MethodResult | None = None
        self.wanted = True
        self._awaited = False

    def run(self) -> None:
        failure = "its process died."
        try:
            while self._fused is None:
                kind, *content = self._pipe.recv()
                if kind == "line":
                    self._tell(*content)
                elif kind == "record":
                    stage, values = content
                    self._task.record(stage, **values)
                elif kind == "failed":
                    failure = content[0]
                else:
                    self._fused = self._with_model(content[0])
        except EOFError:  # the pipe ends when the process does, whatever ended it
            pass
        except Exception as error:  # such as a full disk
            failure = str(error)
        if self._fused is None and self.wanted:
            _warn(self._method, failure)

    def _with_model(self, fused: MethodResult) -> MethodResult:
        model = copy.deepcopy(self._task.model)
        model.vit.load_state_dict(load_tensors(self._task.folder / FUSED).tensors)
        return replace(fused, model=model.eval())

    def _tell(self, level: int, line: str) -> None:
        # Two loops' lines in turns are hard to read: only once it is waited for.
        if self._awaited or level > logging.INFO:
            _log.log(level, line)

    def result(self) -> MethodResult | None:
        self._awaited = True
        self.join()
        return self._fused


def _work(pipe: Connection, order: _Order) -> None:
    torch.set_num_threads(order.threads)
    _log.handlers[:] = [_Lines(pipe)]
    _log.setLevel(logging.INFO)
    _log.propagate = False

    def record(stage: str, **values: Any) -> None:
        plain = {k: v.item() if isinstance(v, Tensor) else v for k, v in values.items()}
        pipe.send(("record", stage, plain))

    model = order.model.to_empty(device="cpu")
    known = dict(load_tensors(order.folder / INITIAL).tensors)
    probed = known.pop(_PROBED)
    model.vit.load_state_dict(known)
    task = Task.load(model, order.uploads, order.settings, order.folder, torch.device("cpu"))
    task = replace(task, label=order.label, record=record)
    task.remember(probed=probed, weight_checks=order.weight_checks)
    try:
        fused = METHODS[order.method](task)
        assert fused.model is not None  # of a method that makes one
        save_tensors(order.folder / FUSED, fused.model.vit.state_dict(), {})
    except FedmitrError as error:
        pipe.send(("failed", str(error)))
        return
    pipe.send(("fused", replace(fused, model=None, teacher=None)))


class _Lines(logging.Handler):
    """Sends each line to the process that shows it."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        self._pipe.send(("line", record.levelno, record.getMessage()))
