"""Images as tensors: what a client trains on, and how an encoded image becomes pixels."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from fedmitr_app.errors import DataError

# What Pillow raises for bytes that are no image, or only half of one.
UNREADABLE = (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory; none at all is a valid set.

    Parameters
    ----------
    images : Tensor
        uint8, ``[N, C, H, W]``: of ``data.stored_size`` if that is set, else of the model's
        own size; ``InputSpec.normalise`` enlarges them batch by batch.
    labels : Tensor
        int64, ``[N]``, indices into ``class_names``.
    class_names : tuple[str, ...]
        Every class of the dataset, also those absent from this set.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: Tensor) -> "ImageSet":
        """Return the images at some indices."""
        return ImageSet(self.images[which], self.labels[which], self.class_names)

    def label_counts(self) -> tuple[int, ...]:
        """Return the number of images of each class."""
        return tuple(torch.bincount(self.labels, minlength=len(self.class_names)).tolist())


def decode_all(
    cells: Iterable[Any], count: int, *, size: int, channels: int, where: str
) -> NDArray[np.uint8]:
    """Decode encoded images into pixels ``[count, channels, size, size]``.

    Parameters
    ----------
    cells : Iterable
        ``count`` encoded images, each as :func:`to_pixels` takes it.
    where : str
        Where they come from, for the message.

    Raises
    ------
    DataError
        If one of them is not a readable 8-bit image.
    """
    pixels = np.empty((count, channels, size, size), dtype=np.uint8)
    for position, cell in enumerate(cells):
        try:
            pixels[position] = to_pixels(cell, size, channels)
        except UNREADABLE as error:
            raise DataError(
                f"{where}: {_name(cell)} is not a readable 8-bit image "
                f"({type(error).__name__}: {error}); repair it or take it out."
            ) from error
    return pixels


def to_pixels(cell: Any, size: int, channels: int) -> NDArray[np.uint8]:
    """Decode one image, cut its longer side to a centred square, and resize it (bicubic).

    Parameters
    ----------
    cell : Any
        A Pillow image; encoded bytes; a path; a mapping with ``bytes`` or ``path``, as
        Hugging Face's Image feature stores it; or an array of 0..255, ``[H, W]``,
        ``[H, W, C]`` or ``[C, H, W]``.

    Returns
    -------
    NDArray[np.uint8]
        ``[channels, size, size]``.
    """
    image = ImageOps.exif_transpose(_open(cell))
    if image.mode[0] in "IF":
        # Pillow would clip these to white instead of scaling them.
        raise ValueError(f"its mode is {image.mode!r}")
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _open(cell: Any) -> Image.Image:
    if isinstance(cell, Image.Image):
        return cell
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, (str, Path)):
        cell = Path(cell).read_bytes()
    if isinstance(cell, bytes):
        return Image.open(io.BytesIO(cell))
    return _from_array(np.asarray(cell))


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim not in (2, 3) or array.dtype.kind not in "iu" or array.size == 0:
        raise ValueError(f"an array of {array.dtype} and shape {array.shape}")
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"its values run from {array.min()} to {array.max()}, not 0 to 255")
    if array.ndim == 3 and array.shape[-1] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))


def _name(cell: Any) -> str:
    if isinstance(cell, dict) and cell.get("path"):
        return repr(str(cell["path"]))
    if isinstance(cell, (str, Path)):
        return repr(str(cell))
    return "one of the images"
