"""A GPU's ways on a CPU: recordings that are replayed, and waits that can be seen."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedmitr_app.inversion import recorded
from fedmitr_app.teacher import Teacher


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Tape(TorchDispatchMode):
    """Every operation, as a CUDA graph holds it: on the same memory, without its Python.

    Recording does nothing, as on a GPU: what was written in place is put back. Unlike a GPU it
    keeps all memory that it refers to alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.overwritten = [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for place, argument in enumerate(function._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            for each in tensors(value):
                if each.data_ptr() not in self.overwritten:
                    self.overwritten[each.data_ptr()] = (each, each.clone())
        found = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, found))
        return found

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, found in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(tensors(found), tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def recording(monkeypatch) -> list[Tape]:
    """Let CPUs record; every recording is told, and how often it was replayed."""
    tapes: list[Tape] = []

    def record(work: Callable, device: torch.device):
        tape = Tape()
        tape.replays = 0
        with tape:
            found = work()
        with torch.no_grad():
            for value, before in tape.overwritten.values():
                value.copy_(before)
        tapes.append(tape)

        def replay() -> None:
            tape.replays += 1
            tape.replay()

        return replay, found

    monkeypatch.setattr(recorded, "DEVICES", ("cpu",))
    monkeypatch.setattr(recorded, "record", record)
    return tapes


class Waits(TorchDispatchMode):
    """Counts copies between devices for which the one that asks waits."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        if function in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
            devices = {each.device.type for each in tensors((args, found))}
            # copy_(to, from, non_blocking)
            waited = not kwargs.get("non_blocking", len(args) > 2 and args[2])
            if len(devices) > 1 and waited:
                self.copies.append(f"{function} {devices}")
        return found


@contextlib.contextmanager
def gpu(monkeypatch) -> Iterator[Waits]:
    """Work on a GPU that isn't there: numbers have shapes alone, and reading one is an error."""
    # Without a device the engine can't run backwards; what it gives has the shape of what is asked.
    monkeypatch.setattr(torch.autograd, "grad", lambda of, by: [torch.empty_like(by)])
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        yield waits


def on_gpu(teacher: Teacher) -> Teacher:
    """Move a teacher to a pretended GPU."""

    def moved(value: torch.Tensor) -> torch.Tensor:
        return torch.empty(value.shape, dtype=value.dtype, device="cuda")

    models = tuple(copy.deepcopy(model) for model in teacher.models)
    for model in models:
        for module in model.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    there = torch.nn.Parameter(moved(value), requires_grad=False)
                    module._parameters[name] = there
    return replace(teacher, models=models, class_weights=moved(teacher.class_weights))
