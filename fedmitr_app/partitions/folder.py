"""Image folders: class/image, or domain/class/image, each also below the folders of splits."""

from collections import Counter
from pathlib import Path
from typing import Any

from fedmitr_app.config import DataConfig
from fedmitr_app.errors import DataError
from fedmitr_app.partitions.images import FORMATS, SUFFIXES
from fedmitr_app.partitions.names import some_names
from fedmitr_app.partitions.parting import Part, part
from fedmitr_app.partitions.rows import Indices, Reading, make_rows
from fedmitr_app.partitions.splits import require_no_splits, split_of
from fedmitr_app.partitions.tree import Tree

_WANTED = f"images ({', '.join(FORMATS)}) as class/image or as domain/class/image"


def read_image_folder(data: DataConfig) -> Reading:
    """Return the training rows, and the test rows where there are any.

    Folders that are called like splits (see ``splits.py``) and hold class folders are splits;
    ``data.test_path`` goes before them. A domain may lack some of the classes.

    Raises
    ------
    DataError
        For a missing folder, images that don't all stand in class folders, or splits that
        nobody can tell apart.
    """
    train, test, notes = part(data, SUFFIXES, _splits, wanted=_WANTED, others_train=False)
    read = _read(train, notes)
    return Reading(read.train, _read(test).train if test else None, read.notes)


def _splits(tree: Tree) -> dict[str, list[Path]]:
    names = {path: tree.parts(path) for path in tree.files}
    # A folder with images right inside is a class, even if it is called "test".
    deep = {below[0] for below in names.values() if len(below) > 2}
    if not any(split_of(top, tree.where) for top in deep):
        return {"": tree.files}
    tops = {below[0] for below in names.values() if len(below) > 1}
    split_at = {top: split_of(top, tree.where) for top in tops}
    splits: dict[str, list[Path]] = {}
    for path, below in names.items():
        splits.setdefault(split_at.get(below[0], ""), []).append(path)
    return splits


def _read(images: Part, notes: tuple[str, ...] = ()) -> Reading:
    """Return one split's rows as those to train on."""
    where, files = images.where, images.files
    # Names below the split's own folder.
    names = [images.tree.parts(path)[1 if images.split else 0 :] for path in files]
    depths = Counter(map(len, names))
    if images.tree.single or depths.keys() not in ({2}, {3}):
        raise DataError(
            f"{where} must be a folder that holds {_WANTED}{_odd_one_out(names, depths)}.",
            public="its images don't stand in class folders: its own log says which.",
        )
    for path, below in zip(files, names, strict=True):
        if not all(map(_is_utf8, below)):
            raise DataError(f"{where}: the name {str(path)!r} is not UTF-8: rename it.")
    classes = [below[-2] for below in names]
    domains = [below[0] for below in names] if 3 in depths else None
    require_no_splits(set(domains or ()), "domains", where)
    called = require_no_splits(set(classes), "classes", where)

    def cells(rows: Indices) -> Any:
        return (files[row] for row in rows)

    odd = (f"{some_names(called)} taken for a class",) if called else ()
    return Reading(make_rows(classes, cells, where, domains=domains), notes=notes + odd)


def _odd_one_out(names: list[tuple[str, ...]], depths: Counter[int]) -> str:
    if depths.keys() == {1}:
        return f": {names[0][0]!r} stands in no folder that names its class"
    rarest = min(depths, key=lambda depth: (depth in (2, 3), depths[depth]))
    odd = next(below for below in names if len(below) == rarest)
    return f", all the same way, unlike {'/'.join(odd)!r}"


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
