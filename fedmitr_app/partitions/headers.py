"""What image files' headers say, held against the size and channels that they are read with."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median

from PIL import Image

from fedmitr_app.config import DataConfig
from fedmitr_app.partitions.images import FORMATS

MOST_HEADERS = 32
"""Files that are looked at (choice): enough to tell what most of them are."""
PHOTOGRAPH = 64
"""Pixels (choice): with a shorter side of more, an image is a photograph, not an icon or digit."""
FEW_PIXELS = 16
"""Pixels a side (choice): so small, hardly anybody can tell what a photograph shows."""
_COLOUR = frozenset(("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"))


def photographs_lost(paths: Iterable[Path], data: DataConfig, where: str) -> str:
    """Tell of photographs that are shrunk to almost nothing, or lose their colours.

    Only headers are read, no pixels; files without a readable one are passed over, since whoever
    decodes them says so.

    Parameters
    ----------
    paths : Iterable[Path]
        At most the first ``MOST_HEADERS`` count.
    data : DataConfig
        The size and channels that they are read with.
    where : str
        The source in words.

    Returns
    -------
    str
        A warning of one sentence, or nothing.
    """
    seen = list(_headers(islice(paths, MOST_HEADERS)))
    sides = [side for side, _ in seen]
    if 2 * sum(side > PHOTOGRAPH for side in sides) <= len(seen):
        return ""
    size, key = (
        (data.stored_size, "data.stored-size")
        if data.stored_size
        else (data.image_size, "data.image-size")
    )
    lost, mend = [], []
    if size <= FEW_PIXELS:
        lost.append(f"shrunk to {key} = {size} pixels a side")
        mend.append(f"{key} = 224")
    if data.channels == 1 and 2 * sum(mode in _COLOUR for _, mode in seen) > len(seen):
        lost.append("read without their colours, data.channels = 1")
        mend.append("data.channels = 3")
    if not lost:
        return ""
    return (
        f"{where}: photographs of about {median(sides):.0f} pixels a side are "
        f"{' and '.join(lost)}: set {' and '.join(mend)}, or preset = 'photos', which does."
    )


def _headers(paths: Iterable[Path]) -> Iterator[tuple[int, str]]:
    """Yield images' shorter sides and modes."""
    for path in paths:
        try:
            with Image.open(path, formats=FORMATS) as image:
                yield min(image.size), image.mode
        except Exception:  # strange bytes raise whatever they like
            continue
