"""The library: fuse state dicts into one model, without Flower."""

import logging
import operator
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fedmitr_app.errors import ConfigError, RunFolderError, UploadError
from fedmitr_app.evaluation import answers, share_right
from fedmitr_app.methods import MethodResult, Task, drop_unusable, find_method, settings_for
from fedmitr_app.methods.registry import MOMENTS
from fedmitr_app.models import InputSpec, PatchViT, architecture_of, wrap_model
from fedmitr_app.run_folder.global_model import save_global_model
from fedmitr_app.teacher import Teacher, save_ensemble
from fedmitr_app.uploads import (
    ArraySpec,
    ClassMoments,
    Expected,
    Metadata,
    Spool,
    Upload,
    check_arrays,
    check_metadata,
    check_moments,
    moments_reference,
)
from fedmitr_app.uploads.validate import check_names, check_shape
from fedmitr_app.utils.device import resolve_device
from fedmitr_app.utils.files import local_path, reason_of
from fedmitr_app.utils.reading import open_tensors
from fedmitr_app.utils.text import harmless

_log = logging.getLogger(__name__)

State = Mapping[str, Tensor] | str | Path


@dataclass(frozen=True)
class FusedModel:
    """What :func:`fuse` made of the uploads."""

    fused: MethodResult = field(repr=False)
    """The global model and how it came about: images, curves, seconds."""
    spec: InputSpec
    """What the model expects of an image."""
    class_names: tuple[str, ...]
    preset: str
    left_out: frozenset[str]
    """Names of the uploads that were not used, ``client-000`` the first."""
    device: torch.device

    @property
    def model(self) -> VisionTransformer | None:
        """The global model, timm's own; None of a method that gives no single one."""
        return None if self.fused.model is None else self.fused.model.vit

    @property
    def state_dict(self) -> dict[str, Tensor] | None:
        """The global model's weights, on the CPU; None likewise."""
        if self.model is None:
            return None
        return {name: value.cpu() for name, value in self.model.state_dict().items()}

    @property
    def teacher(self) -> Teacher | None:
        """The ensemble that taught it; None of a method that has none."""
        return self.fused.teacher

    def accuracy(self, images: Tensor, labels: Tensor, batch_size: int = 256) -> float:
        """Score the global model, or the ensemble if there is no single one.

        Parameters
        ----------
        images : Tensor
            Pixels ``[n, C, H, W]``: uint8, or float in [0, 1].
        labels : Tensor
            int64 ``[n]``.
        """
        if images.is_floating_point():
            images = images.float()
        logits = answers(
            self.fused.predict, images, self.spec, device=self.device, batch_size=batch_size
        )
        return share_right(logits.cpu(), labels.cpu())


def fuse(
    uploads: Sequence[State],
    model: VisionTransformer | PatchViT,
    *,
    num_examples: Sequence[int] | None = None,
    method: str = "fedmitr",
    preset: str = "auto",
    changes: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    run_dir: str | Path | None = None,
    label_counts: Sequence[Sequence[int]] | None = None,
    moments: Sequence[ClassMoments] | None = None,
    class_names: Sequence[str] | None = None,
    input_spec: InputSpec | None = None,
) -> FusedModel:
    """Fuse models that clients trained from one θ₀ into one global model.

    The same validation as of a round's uploads, and for the same uploads and seed the same bits
    as of :class:`~fedmitr_app.strategies.OneShotStrategy`, whose uploads have the keys
    ``client-000``, ``client-001``, ... in this order.

    Parameters
    ----------
    uploads : Sequence[Mapping[str, Tensor] | str | Path]
        The clients' state dicts under timm's names, or paths of safetensors files.
    model : VisionTransformer | PatchViT
        A plain timm ViT or DeiT that holds θ₀; not changed.
    num_examples : Sequence[int], optional
        How many images each client trained on; None: all count alike.
    method : str
        As ``server.method``.
    preset : str
        ``auto`` takes the settings that suit θ₀; or the name of a preset.
    changes : Mapping[str, Any], optional
        Settings by their run-config keys, such as ``{"distillation.steps": 500}``.
    device : str | torch.device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    run_dir : str | Path, optional
        A new folder, in which uploads, synthetic images and the global model stay, as
        ``load`` takes it; None keeps nothing on disk.
    label_counts : Sequence[Sequence[int]], optional
        How many images of each class each client holds, where clients share that.
    moments : Sequence[ClassMoments], optional
        Class moments of θ₀'s features, which ``fedcgs`` and ``afl`` need.
    class_names : Sequence[str], optional
        None: ``0``, ``1``, ...
    input_spec : InputSpec, optional
        What the clients feed their model; None reads it off the model.

    Raises
    ------
    ConfigError
        For a setting or a list that can't be right, or moments that the method needs.
    ModelError
        If ``model`` is of no use.
    UploadError
        For a state dict that doesn't fit, or numbers that can't be its client's, naming it; if no
        upload is of any use.
    TrainingError
        If inversion or distillation leaves the finite numbers.
    RunFolderError
        If ``run_dir`` can't be used.
    """
    taken, chosen = wrap_model(model, input_spec), find_method(method, "method")
    if MOMENTS in chosen.needs and (moments is None or all(each is None for each in moments)):
        raise ConfigError.bad_value(
            "moments", None, f"each client's ClassMoments, which method = {method!r} needs"
        )
    used, settings = settings_for(taken, preset, seed, changes)
    if isinstance(device, str):
        device = resolve_device(device, "device")
    names = _class_names(class_names, taken.num_classes)
    given = _Given(uploads, num_examples, label_counts, moments)
    given.check()
    _log.info("settings: preset %r, method %r", used, chosen.name)
    with _folder(run_dir) as folder:
        spooled, copies = _spool(given, taken, folder)
        task = Task.load(taken, spooled, settings, folder, device)
        screened = drop_unusable(chosen, task)
        fused = chosen(screened.task)
        if run_dir is not None and fused.model is not None:
            state, spec = fused.model.vit.state_dict(), taken.spec.to_dict()
            save_global_model(folder, state, architecture_of(taken), spec, names)
        if run_dir is not None and fused.teacher is not None:
            save_ensemble(folder, fused.teacher, spooled, names)
    left_out = screened.left_out | copies
    return FusedModel(fused, taken.spec, names, used, left_out, device)


@dataclass(frozen=True)
class _Given:
    """What :func:`fuse` is given of each client."""

    states: Sequence[State]
    num_examples: Sequence[int] | None
    label_counts: Sequence[Sequence[int]] | None
    moments: Sequence[ClassMoments] | None

    def check(self) -> None:
        """Refuse lists that can't be right."""
        if not isinstance(self.states, (list, tuple)) or not self.states:
            raise ConfigError(
                "uploads must be a list of at least one state dict, or path of a safetensors "
                "file, one for each client."
            )
        for name in ("num_examples", "label_counts", "moments"):
            values = getattr(self, name)
            count = len(values) if hasattr(values, "__len__") else 0
            if values is not None and count != len(self.states):
                raise ConfigError.bad_value(
                    name, f"{count} value(s)", f"one for each of the {len(self.states)} upload(s)"
                )

    def of(self, name: str, number: int) -> Any:
        values = getattr(self, name)
        return None if values is None else values[number]


def _spool(given: _Given, model: PatchViT, folder: Path) -> tuple[list[Upload], frozenset[str]]:
    """Check each upload as one that a client sent, and write it; name those that are copies."""
    initial = {name: value.numpy() for name, value in model.vit.state_dict().items()}
    reference = {name: ArraySpec(value.shape, value.dtype) for name, value in initial.items()}
    expected = Expected(architecture_of(model), model.spec, model.num_classes)
    spool = Spool(folder / "uploads", folder / "rejected")
    moments = moments_reference(model.num_classes, model.vit.num_features)
    for number, state in enumerate(given.states):
        which = f"Upload {number}" + (f" ({state})" if isinstance(state, (str, Path)) else "")
        try:
            arrays, notes = check_arrays(_arrays(state, reference), reference)
            counts = given.of("label_counts", number)
            counts = None if counts is None else tuple(map(_whole, counts))
            examples = given.of("num_examples", number)
            if examples is None:  # all count alike
                examples = 1 if counts is None else sum(counts)
            metadata = Metadata(
                num_examples=_whole(examples),
                client=f"client-{number:03d}",
                label_counts=counts,
            )
            checked, wrong = check_metadata(metadata, expected)
            if wrong:
                raise UploadError(wrong[0])
            shared = given.of("moments", number)
            if shared is not None:
                if not isinstance(shared, ClassMoments):
                    raise UploadError(f"its moments are a {type(shared).__name__}.")
                shared, _ = check_arrays(shared.arrays(), moments)
                shared = check_moments(shared, examples)
        except UploadError as error:
            raise UploadError(harmless(f"{which}: {error}")) from None
        for note in notes:
            _log.info("%s: %s", which, note)
        spool.add(arrays, checked, shared)
    kept = spool.settle()
    return kept, frozenset(rejection.client for rejection in spool.rejections)


def _arrays(state: State, reference: Mapping[str, ArraySpec]) -> Mapping[str, np.ndarray]:
    """Return a state dict's arrays; a file is read as safetensors, never unpickled.

    Of a file names and shapes are checked before a value is read.
    """
    if isinstance(state, (str, Path)):
        try:
            with open_tensors(Path(state).expanduser(), "pt") as stored:
                shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}
                check_names(shapes, reference)
                for name, shape in shapes.items():
                    check_shape(name, shape, reference[name])
                state = {name: stored.get_tensor(name) for name in shapes}
        except (OSError, ValueError, RuntimeError) as error:
            raise UploadError(
                f"it can't be read as a safetensors file ({reason_of(error)})."
            ) from error
    if not isinstance(state, Mapping):
        raise UploadError(f"it is a {type(state).__name__}, and no state dict or path.")
    found = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UploadError(f"{name!r} is a {type(value).__name__}, and no tensor by a name.")
        if value.dtype == torch.bfloat16:  # which numpy has not
            value = value.float()
        try:
            found[name] = value.detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:  # float8, sparse, without values
            raise UploadError(f"{name} is {value.dtype} in a form that has no numbers.") from error
    return found


def _whole(number: Any) -> Any:
    """Return a whole number of numpy's or torch's as Python's; what is none as it is."""
    try:
        return operator.index(number)
    except TypeError:
        return number


def _class_names(given: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if given is None:
        return tuple(str(number) for number in range(count))
    names = tuple(given)
    words = all(isinstance(name, str) for name in names) and not isinstance(given, str)
    if not words or len(names) != count or len(set(map(harmless, names))) < count:
        raise ConfigError.bad_value(
            "class_names", f"{len(names)} name(s)", f"{count} different words, one for each class"
        )
    return names


@contextmanager
def _folder(run_dir: str | Path | None) -> Iterator[Path]:
    """Give a folder to work in: the run's own, or a temporary one."""
    if run_dir is None:
        path = Path(tempfile.mkdtemp(prefix="fedmitr-"))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
        return
    path = local_path("run_dir", run_dir, ConfigError)
    try:
        path.mkdir(parents=True, exist_ok=True)
        taken = any(path.iterdir())
    except (OSError, ValueError) as error:
        raise RunFolderError(
            harmless(f"run_dir = {str(path)!r} can't be used: {reason_of(error)}.")
        ) from error
    if taken:
        raise RunFolderError(f"run_dir = {str(path)!r} already holds files: choose a new folder.")
    yield path
