"""What a run left to classify with, its preprocessing and its classes' names with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fedmitr_app.errors import ConfigError, DataError, RunFolderError
from fedmitr_app.models import InputSpec, wrap_model
from fedmitr_app.partitions.images import decode_all
from fedmitr_app.run_folder.global_model import DESCRIPTION_NAME, WEIGHTS_NAME, build_described
from fedmitr_app.teacher import ENSEMBLE_NAME, Ensemble, build_ensemble
from fedmitr_app.utils.device import resolve_device
from fedmitr_app.utils.files import load_tensors, local_path, reason_of
from fedmitr_app.utils.reading import open_tensors, read_table, require_ordinary
from fedmitr_app.utils.text import harmless

BATCH = 64
"""Images that the model reads at once."""
MODEL, ENSEMBLE = "model", "ensemble"
"""What a run leaves to classify with."""
Read = tuple[VisionTransformer | Ensemble, tuple[str, ...], InputSpec]


class Prediction(NamedTuple):
    """What a model says of one image."""

    label: str
    """The likeliest class."""
    probability: float
    """Of that class."""
    probabilities: dict[str, float]
    """Of every class, in the model's order."""


@dataclass(frozen=True)
class Predictor:
    """A model that takes images as they are."""

    model: VisionTransformer | Ensemble
    """timm's own, or the ensemble, in evaluation mode."""
    spec: InputSpec
    """What it expects of an image."""
    class_names: tuple[str, ...]
    device: torch.device

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...]) -> list[Prediction]: ...

    @overload
    def predict(self, images: Any) -> Prediction | list[Prediction]: ...

    def predict(self, images: Any) -> Prediction | list[Prediction]:
        """Classify one image, or a list of them.

        Parameters
        ----------
        images : Any
            A path (``str`` or ``Path``), a Pillow image, an array of 0..255 (``[H, W]``,
            ``[H, W, C]`` or ``[C, H, W]``), a tensor ``[C, H, W]`` (uint8, or float in [0, 1]), or
            a list of such. Their longer side is cut to a centred square, which is resized, as
            images are that clients train on; of tensors the size must be a square's.

        Returns
        -------
        Prediction | list[Prediction]
            A list for a list, in its order.

        Raises
        ------
        DataError
            For what is no image that can be read.
        """
        several = isinstance(images, (list, tuple))
        given = list(images) if several else [images]
        found: list[Prediction] = []
        for first in range(0, len(given), BATCH):
            found += self._predict(given[first : first + BATCH], first, len(given))
        return found if several else found[0]

    @torch.no_grad()
    def _predict(self, images: Sequence[Any], first: int, count: int) -> list[Prediction]:
        rows = [
            self._of_tensor(image, first + number, count)
            if isinstance(image, Tensor)
            else self._of_image(image)
            for number, image in enumerate(images)
        ]
        pixels = torch.cat([self.spec.normalise(row) for row in rows])
        shares = self.model(pixels.to(self.device)).softmax(-1).cpu()
        return [self._told(row) for row in shares.tolist()]

    def _told(self, shares: Sequence[float]) -> Prediction:
        likeliest = int(np.argmax(shares))
        names = dict(zip(self.class_names, shares, strict=True))
        return Prediction(self.class_names[likeliest], shares[likeliest], names)

    def _of_image(self, image: Any) -> Tensor:
        if isinstance(image, str):
            image = local_path("image", image, DataError)
        if isinstance(image, Path):
            image = _existing(image)
        if isinstance(image, Image.Image):
            image = image.copy()  # decoding closes what it is given
        size, channels = self.spec.size, self.spec.channels
        return torch.from_numpy(decode_all([image], 1, size=size, channels=channels, where="image"))

    def _of_tensor(self, image: Tensor, number: int, count: int) -> Tensor:
        channels, shape = self.spec.channels, tuple(image.shape)
        whole = image.dtype == torch.uint8
        good = len(shape) == 3 and shape[0] == channels and shape[1] == shape[2] > 0
        if good and not whole:
            good = image.is_floating_point() and bool((image >= 0).all() & (image <= 1).all())
        if not good:
            raise DataError(
                f"image {number + 1} of {count} is a tensor of {image.dtype} and shape {shape}: "
                f"it must be [{channels}, size, size], uint8 or float in [0, 1]."
            )
        image = image.cpu().unsqueeze(0)
        return image if whole else image.float()


def load(run_dir: str | Path, part: str = MODEL, device: str | torch.device = "auto") -> Predictor:
    """Load what a run, or :func:`~fedmitr_app.api.fuse` with a ``run_dir``, left to classify with.

    Parameters
    ----------
    run_dir : str | Path
        The run's folder.
    part : str
        ``model``: the one global model. ``ensemble``: all that taught it, combined as they were,
        each asked for every image; of a method that has a teacher.
    device : str | torch.device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    ConfigError
        If there is no such part or device.
    RunFolderError
        If the folder doesn't hold it, or it can't be read.
    """
    if part not in (MODEL, ENSEMBLE):
        raise ConfigError.bad_value("part", part, f"{MODEL!r} or {ENSEMBLE!r}")
    if not isinstance(run_dir, (str, Path)):
        raise ConfigError.bad_value("run_dir", run_dir, "the path of a run's folder")
    folder = local_path("run_dir", run_dir, ConfigError)
    where = f"run_dir = {str(folder)!r}"
    if isinstance(device, str):
        device = resolve_device(device, "device")
    read = _read_model if part == MODEL else _read_ensemble
    try:
        model, names, spec = read(folder, device)
    except RunFolderError:
        raise
    except Exception as error:  # a folder may be anybody's: timm and safetensors raise anything
        kind = "a global model" if part == MODEL else "an ensemble"
        raise RunFolderError(
            f"{where} holds {kind} that can't be read ({reason_of(error)})."
        ) from error
    if len(names) != model.num_classes:
        raise RunFolderError(
            f"{where} names {len(names)} classes for a model of {model.num_classes}."
        )
    return Predictor(model.to(device).eval().requires_grad_(False), spec, names, device)


def _read_model(folder: Path, device: torch.device) -> Read:
    try:
        described = read_table(folder / DESCRIPTION_NAME)
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"run_dir = {str(folder)!r} holds no global model ({DESCRIPTION_NAME} and "
            f"{WEIGHTS_NAME}): name the folder of a run that has ended and made one, or load its "
            "'ensemble'."
        ) from error
    names, spec = _names_and_spec(described)
    with open_tensors(folder / WEIGHTS_NAME, "pt") as stored:
        state = {name: stored.get_tensor(name) for name in stored.keys()}
    model = build_described(described["architecture"], state)
    wrap_model(model, spec)  # finite float32 numbers, which answer images of that kind
    return model, names, spec


def _read_ensemble(folder: Path, device: torch.device) -> Read:
    try:
        (folder / ENSEMBLE_NAME).lstat()
    except PermissionError:
        pass  # told when it is read
    except OSError as error:
        raise RunFolderError(
            f"run_dir = {str(folder)!r} holds no ensemble ({ENSEMBLE_NAME}): name the folder of a "
            "run that has ended, of a method that has a teacher."
        ) from error
    stored = load_tensors(folder / ENSEMBLE_NAME)
    names, spec = _names_and_spec(stored.facts)
    model = build_ensemble(folder, stored, spec, device)
    return model, names, spec


def _names_and_spec(described: Mapping[str, Any]) -> tuple[tuple[str, ...], InputSpec]:
    names = described["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its class names are no list of words")
    shown = tuple(map(harmless, names))
    if len(set(shown)) < len(shown):
        raise ValueError("its class names don't all differ")
    spec = InputSpec.from_dict(described["input_spec"])
    if not spec.is_sound:
        raise ValueError("its input spec has other numbers than channels")
    if min(spec.std) <= 0:
        raise ValueError("its input spec has a deviation that is not above 0")
    return shown, spec


def _existing(image: Path) -> Path:
    """Refuse what is no ordinary file, links resolved: a pipe would be waited for."""
    try:
        require_ordinary(image.resolve())
    except FileNotFoundError:
        pass  # told where it is decoded
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            harmless(f"image {str(image)!r} can't be read ({reason_of(error)}).")
        ) from error
    return image
