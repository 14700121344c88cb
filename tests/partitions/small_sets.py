"""Small stand-ins for the presets' datasets, drawn by code, in every layout they are read from.

A picture is one grey shade, which tells its domain and class in whatever mode it is stored.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as PillowImage

DOMAINS = ("Art", "Clipart", "Product", "Real World")
CLASSES = ("Alarm_Clock", "Bed", "Mug", "TV")
# Which pairs of domain and class have no image at all.
ABSENT = {("Art", "Bed"), ("Clipart", "TV"), ("Clipart", "Mug")}
MODES = ("RGB", "L", "RGBA", "P", "LA", "CMYK")
SIZES = ((20, 14), (9, 31), (16, 16), (7, 5))


class Photo(NamedTuple):
    """One labelled picture."""

    domain: str
    name: str
    number: int

    @property
    def shade(self) -> int:
        return shade_of(self.domain, self.name)

    def encoded(self) -> bytes:
        """In a mode and a size that differ from one picture to the next."""
        shade, mode = self.shade, MODES[self.number % len(MODES)]
        picture = PillowImage.new("RGB", SIZES[self.number % len(SIZES)], (shade,) * 3)
        stream = io.BytesIO()
        # Adaptive, for a palette: the usual one lacks most shades.
        picture = picture.convert(mode, palette=PillowImage.Palette.ADAPTIVE)
        picture.save(stream, format="TIFF" if mode == "CMYK" else "PNG")
        return stream.getvalue()


def shade_of(domain: str, name: str) -> int:
    return 60 * DOMAINS.index(domain) + 10 * CLASSES.index(name)


def photos(each: int = 10) -> Iterator[Photo]:
    """``each`` pictures of every domain and class that go together."""
    for domain in DOMAINS:
        for name in CLASSES:
            if (domain, name) not in ABSENT:
                yield from (Photo(domain, name, number) for number in range(each))


def write_folders(root: Path, chosen: Iterable[Photo], *, domains: bool = True) -> Path:
    """domain/class/image, or class/image."""
    for photo in chosen:
        folder = root / photo.domain / photo.name if domains else root / photo.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{photo.domain}{photo.number:05}.jpg").write_bytes(photo.encoded())
    return root


def write_table(
    path: Path, chosen: Iterable[Photo], *, label: str = "class", image: str = "image"
) -> Path:
    """A parquet file with the columns of the hub's; ``label`` is 'class', 'word' or 'number'."""
    rows = list(chosen)
    labels: list[Any] = [photo.name if label == "word" else number_of(photo) for photo in rows]
    kinds = {"class": ClassLabel(names=list(CLASSES)), "word": Value("string")}
    features = Features(
        {image: Image(), "domain": Value("string"), "label": kinds.get(label, Value("int64"))}
    )
    table = pa.table(
        {
            image: [{"bytes": photo.encoded(), "path": None} for photo in rows],
            "domain": [photo.domain for photo in rows],
            "label": labels,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.cast(features.arrow_schema), path, row_group_size=7)
    return path


def number_of(photo: Photo) -> int:
    return CLASSES.index(photo.name)
