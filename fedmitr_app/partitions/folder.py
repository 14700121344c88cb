"""Image folders: class/image, or domain/class/image."""

from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from fedmitr_app.config import DataConfig
from fedmitr_app.errors import DataError
from fedmitr_app.partitions.paths import existing_path
from fedmitr_app.partitions.rows import Indices, Rows, make_rows
from fedmitr_app.partitions.splits import split_folders


def read_image_folder(data: DataConfig) -> tuple[Rows, Rows | None]:
    """Return the training rows, and the test rows where there are any.

    A folder with both ``train`` and ``test`` (or ``validation``, ``val``) inside is split by
    them; ``data.test_path`` goes before that. A domain may lack some of the classes.

    Raises
    ------
    DataError
        For a missing folder, or images that don't all stand in class folders.
    """
    root = existing_path("data.path", data.path)
    where = f"data.path = {data.path!r}"
    train, test = split_folders(root)
    if data.test_path:
        test = existing_path("data.test-path", data.test_path)
        return _rows(train, where), _rows(test, f"data.test-path = {data.test_path!r}")
    return _rows(train, where), None if test is None else _rows(test, where)


def _rows(root: Path, where: str) -> Rows:
    suffixes = Image.registered_extensions()
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in suffixes and path.is_file() and not _hidden(path, root)
    )
    depths = Counter(len(path.relative_to(root).parts) for path in paths)
    if depths.keys() not in ({2}, {3}):
        raise DataError(
            f"{where}: {root} must hold images as class/image or as domain/class/image, all "
            f"{_odd_one_out(paths, root, depths) or 'in a format Pillow reads'}."
        )

    def cells(rows: Indices) -> Any:
        return (paths[row] for row in rows)

    return make_rows(
        [path.parent.name for path in paths],
        cells,
        where,
        domains=[path.parent.parent.name for path in paths] if 3 in depths else None,
    )


def _odd_one_out(paths: list[Path], root: Path, depths: Counter[int]) -> str:
    if not paths:
        return ""
    rarest = min(depths, key=lambda depth: (depth in (2, 3), depths[depth]))
    odd = next(path for path in paths if len(path.relative_to(root).parts) == rarest)
    return f"the same way, unlike {str(odd.relative_to(root))!r}"


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
