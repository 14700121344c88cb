"""A finished run, read back from its folder for measuring."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from fedmitr_app.config import Config, parse_config
from fedmitr_app.diagnostics.diagnose import Distilled
from fedmitr_app.errors import RunFolderError
from fedmitr_app.inversion import Pool, PoolData
from fedmitr_app.methods.settings import MethodSettings
from fedmitr_app.methods.task import Task
from fedmitr_app.models import InputSpec, PatchViT, build_vit
from fedmitr_app.partitions import load_test_set
from fedmitr_app.run_folder import COMPLETED
from fedmitr_app.run_folder.global_model import DESCRIPTION_NAME, WEIGHTS_NAME
from fedmitr_app.run_folder.status import how_it_stands, settle_status
from fedmitr_app.uploads import read_spool
from fedmitr_app.utils.device import resolve_device
from fedmitr_app.utils.files import reason_of
from fedmitr_app.utils.reading import open_tensors, read_table

_UNREADABLE = (
    RunFolderError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    SafetensorError,
)
T = TypeVar("T")


@dataclass(frozen=True)
class FinishedRun:
    """All of a run that a diagnosis looks at."""

    config: Config
    task: Task
    student: Distilled
    test: tuple[Tensor, Tensor] | None
    """Images and labels; None if the run's server had none."""


def read_run(folder: Path, device: str, dense: bool) -> FinishedRun:
    """Read a run folder.

    Parameters
    ----------
    folder : Path
        Of a completed run with ``server.method = "fedmitr"``.
    device : str
        As ``server.device``, of this machine.
    dense : bool
        Whether another student is to be distilled: it may start from θ₀'s weights, which may
        come from the network. Otherwise θ₀ only gives its shape.

    Raises
    ------
    FedmitrError
        In one sentence, for whatever is missing, damaged or does not fit.
    """
    config = _config(folder)
    if config.server.method != "fedmitr" or not any(folder.glob("pool/pool-*.safetensors")):
        raise RunFolderError(
            f"{folder} holds no pool of synthetic images (server.method = "
            f"{config.server.method!r}): diagnose a completed run with server.method = 'fedmitr'."
        )
    where = resolve_device(device, "--device")
    model = _model(folder, config, with_weights=dense and config.distillation.student == "initial")
    uploads = read_spool(folder / "uploads")
    if not uploads:
        raise RunFolderError(f"{folder / 'uploads'} holds no uploads: diagnose a whole run folder.")
    settings = MethodSettings.of(config)
    task = _read(folder / "uploads", lambda: Task.load(model, uploads, settings, folder, where))
    pool = _read(folder / "pool", lambda: _pool(folder, model, where))
    student = _read(folder / WEIGHTS_NAME, lambda: _student(folder, task, where))
    test = None
    if config.server.test_set:
        real = load_test_set(config.data)
        test = real.images, real.labels
    return FinishedRun(config, task, Distilled(student, pool), test)


def _config(folder: Path) -> Config:
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder: name the folder of a completed run.")
    if (status := settle_status(folder)).get("state") not in (None, COMPLETED):
        raise RunFolderError(
            f"{folder} can't be diagnosed, {how_it_stands(status)}: name the folder of a completed "
            "run."
        )
    path = folder / "config.json"
    table = _read(path, lambda: read_table(path))
    if not all(isinstance(value, (bool, int, float, str)) for value in table.values()):
        raise _unfit(path, "it is not a table of settings")
    return parse_config(table)


def _model(folder: Path, config: Config, with_weights: bool) -> PatchViT:
    """Build θ₀, of random weights if nobody asks for its own."""
    path = folder / DESCRIPTION_NAME
    count = _read(path, lambda: len(read_table(path)["class_names"]))
    data, model = config.data, config.model
    spec = InputSpec.of(data)
    chosen = model if with_weights else replace(model, weights="")
    return build_vit(chosen, spec, count, config.seed)


def _pool(folder: Path, model: PatchViT, device: torch.device) -> PoolData:
    spec = model.spec
    pool = Pool(folder / "pool", model.num_patches).load(device)
    shape, expected = tuple(pool.images.shape[1:]), (spec.channels, spec.size, spec.size)
    if shape != expected or pool.targets.shape[1] != model.num_classes:
        raise ValueError(f"its images are {list(shape)}, and the model takes {list(expected)}")
    return pool


def _student(folder: Path, task: Task, device: torch.device) -> PatchViT:
    student = copy.deepcopy(task.model)
    with open_tensors(folder / WEIGHTS_NAME, "pt") as file:
        student.vit.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    return student.to(device).eval()


def _read(path: Path, read: Callable[[], T]) -> T:
    """Read, and turn what goes wrong with a file into one sentence."""
    try:
        return read()
    except _UNREADABLE as error:
        raise _unfit(path, reason_of(error).partition("\n")[0]) from error


def _unfit(path: Path, why: str) -> RunFolderError:
    return RunFolderError(
        f"{path} is missing, damaged, or of another run ({why}): diagnose the folder of a "
        "completed run as the run left it."
    )
