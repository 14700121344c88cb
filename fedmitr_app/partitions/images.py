"""Images as tensors: what a client trains on, and how an encoded image becomes pixels."""

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fedmitr_app.errors import DataError
from fedmitr_app.utils.files import kind_and_reason

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""All that is ever decoded. Pillow knows more: PostScript, which starts a program, among them."""
SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm".split()
)
MOST_PIXELS = 89_478_485
"""Of one image (choice): where Pillow warns of a bomb; cameras' photos have 10 to 60 million."""
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    read : str
        What was read to get them, in one line for the log.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    read: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: Tensor) -> "ImageSet":
        """Return the images at some indices."""
        return replace(self, images=self.images[which], labels=self.labels[which])

    def label_counts(self) -> tuple[int, ...]:
        """Return the number of images of each class."""
        return tuple(torch.bincount(self.labels, minlength=len(self.class_names)).tolist())


def decode_all(
    cells: Iterable[Any],
    count: int,
    *,
    size: int,
    channels: int,
    where: str,
    roots: tuple[Path, ...] = (),
) -> NDArray[np.uint8]:
    """Decode encoded images into pixels ``[count, channels, size, size]``.

    Parameters
    ----------
    cells : Iterable
        ``count`` encoded images, each as :func:`to_pixels` takes it.
    where : str
        Where they come from, for the message.
    roots : tuple[Path, ...]
        As for :func:`to_pixels`.

    Raises
    ------
    DataError
        If one of them is not a readable 8-bit image, whatever its decoder makes of it. Other
        machines are told its number, and no name.
    """
    pixels = np.empty((count, channels, size, size), dtype=np.uint8)
    for position, cell in enumerate(cells):
        number = f"image {position + 1} of {count}"
        try:
            pixels[position] = to_pixels(cell, size, channels, roots)
        except FileNotFoundError as error:
            raise DataError(
                f"{where}: {_name(cell) or number} does not exist; put it back or take it out.",
                public=f"{number} is missing: its own log names it.",
            ) from error
        except Exception as error:  # decoders of strange bytes raise whatever they like
            raise DataError(
                f"{where}: {_name(cell) or number} is not a readable 8-bit image "
                f"({_reason(error)}); repair it or take it out.",
                public=f"{number} is not a readable 8-bit image ({type(error).__name__}): its own "
                "log names it.",
            ) from error
    return pixels


def to_pixels(
    cell: Any, size: int, channels: int, roots: tuple[Path, ...] = ()
) -> NDArray[np.uint8]:
    """Decode one image, cut its longer side to a centred square, and resize it (bicubic).

    Transparent parts become white, the ground that drawings are made for (choice). The turn
    that a camera noted is undone; whatever else stands beside the pixels is not read.

    Parameters
    ----------
    cell : Any
        A Pillow image; encoded bytes; a ``Path``; a mapping with ``bytes`` or ``path``, as
        Hugging Face's Image feature stores it; a path as a string; or an array of 0..255,
        ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]``.
    roots : tuple[Path, ...]
        Folders that paths in mappings and strings must lie below, links resolved: they are data
        that may come from anybody. Relative ones count from the first.

    Returns
    -------
    NDArray[np.uint8]
        ``[channels, size, size]``.
    """
    with _open(cell, roots) as opened:
        if opened.width * opened.height > MOST_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels, more than {MOST_PIXELS}")
        opened.load()
        image = _upright(opened)
    if image.mode[0] in "IF":
        # Pillow would clip these to white instead of scaling them.
        raise ValueError(f"its mode is {image.mode!r}")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose, which writes all of EXIF anew: good pixels often stand beside
    # tags that can't be read.
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 0))
    except Exception:  # any tag may be broken in any way: then nobody knows of a turn
        return image
    return image if turn is None else image.transpose(turn)


def _open(cell: Any, roots: tuple[Path, ...]) -> Image.Image:
    if isinstance(cell, Image.Image):
        return cell
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if cell is None or isinstance(cell, (bytes, str)) and not cell:
        raise ValueError("no image in this row")
    if isinstance(cell, str):
        cell = _below(cell, roots)
    if isinstance(cell, bytes):
        cell = io.BytesIO(cell)
    if isinstance(cell, (Path, io.BytesIO)):
        return Image.open(cell, formats=FORMATS)
    return _from_array(np.asarray(cell))


def _below(text: str, roots: tuple[Path, ...]) -> Path:
    found = Path(roots[0] if roots else "", text).resolve()
    if not any(found.is_relative_to(root.resolve()) for root in roots):
        raise ValueError("a path that leads out of the dataset's folder")
    if found.exists() and not found.is_file():
        raise ValueError("a path of something that is no file")
    return found


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


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"none of {', '.join(FORMATS)}"
    return kind_and_reason(error)


def _name(cell: Any) -> str:
    if isinstance(cell, dict) and cell.get("path"):
        cell = str(cell["path"])
    return repr(str(cell))[:300] if isinstance(cell, (str, Path)) and str(cell) else ""
