"""What images lie below a folder: links followed, nothing dropped without a word."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fedmitr_app.errors import DataError
from fedmitr_app.partitions.names import some_names
from fedmitr_app.utils.files import reason_of
from fedmitr_app.utils.text import harmless

# What NAS boxes, macOS, Windows and Python leave in folders, beside all that starts with a dot.
_NO_FOLDERS = frozenset(
    ("@eaDir", "@tmp", "@Recycle", "#recycle", "#snapshot", "__pycache__", "__MACOSX")
    + ("$RECYCLE.BIN", "System Volume Information", "lost+found")
)
_NO_FILES = frozenset(("Thumbs.db", "desktop.ini", "Desktop.ini", "Icon\r"))
DEEPEST = 5
"""Levels that are looked at: a level more than split/domain/class/image."""


@dataclass
class Tree:
    """The files of some kinds below ``root``.

    Attributes
    ----------
    files : list[Path]
        In the order of their names.
    folders : list[Path]
        All that were entered.
    skipped : Counter[str]
        How many other files there are, by their suffix.
    single : bool
        Whether there is one file and no folder: ``root`` is where it stands.
    """

    root: Path
    where: str
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    single: bool = False

    def parts(self, path: Path) -> tuple[str, ...]:
        """Return a path's names below the root."""
        return path.parts[len(self.root.parts) :]

    def notes(self) -> list[str]:
        """Tell what has no files, and what was skipped."""
        holders = {path.parent for path in self.files}
        full = holders.union(*(at.parents for at in holders))
        empty = [at for at in self.folders if at not in full and at.parent in full | {self.root}]
        names = sorted("/".join(self.parts(at)) for at in empty)
        told = [f"nothing in {some_names(names)}"] if names else []
        kinds = [f"{count} {suffix}" for suffix, count in self.skipped.most_common(10)]
        return [*told, f"skipped {', '.join(kinds)}"] if kinds else told


def walk(root: Path, suffixes: frozenset[str], where: str) -> Tree:
    """Look for files with one of the suffixes, whatever their case, below a folder.

    A file instead of a folder is all that there is, whatever its suffix. Links to folders and
    files are followed, also out of ``root``: whoever lays it out may keep a class on another disk.

    Raises
    ------
    DataError
        For a folder that can't be listed, a link to nothing that may have been an image or a
        class, or one to a folder that it lies in.
    """
    if root.is_file():
        return Tree(root.parent, where, [root], single=True)
    tree = Tree(root, where)
    try:
        _enter(tree, root, suffixes, ())
    except OSError as error:
        raise _unreadable(where, error) from error
    tree.files.sort()
    return tree


def _enter(
    tree: Tree, folder: Path, suffixes: frozenset[str], above: tuple[tuple[int, int], ...]
) -> None:
    at = _identity(folder)
    if at in above:
        raise DataError(
            f"{tree.where}: {str(folder)!r} is a link to a folder that it lies in: take it out."
        )
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name in _NO_FOLDERS | _NO_FILES:
                continue
            suffix = path.suffix.lower()
            if entry.is_symlink() and not os.path.exists(path):
                if suffix and suffix not in suffixes:  # neither an image nor, most likely, a class
                    tree.skipped[f"{harmless(suffix, 20)} link to nothing"] += 1
                    continue
                raise DataError(
                    f"{tree.where}: {str(path)!r} is a link to nothing: get what it stands for, or "
                    "take it out."
                )
            if entry.is_dir():
                tree.folders.append(path)
                if len(tree.parts(path)) < DEEPEST:
                    _enter(tree, path, suffixes, (*above, at))
                else:
                    tree.skipped[f"folder below {DEEPEST} others"] += 1
            elif suffix in suffixes and entry.is_file():
                tree.files.append(path)
            else:
                tree.skipped[harmless(suffix, 20) or "without a suffix"] += 1


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def without(files: list[Path], others: list[Path], where: str) -> list[Path]:
    """Return the files that are not among the others, under whatever path or link.

    Raises
    ------
    DataError
        If one is gone meanwhile.
    """
    try:
        known = set(map(_identity, others))
        return [path for path in files if _identity(path) not in known]
    except OSError as error:
        raise _unreadable(where, error) from error


def _unreadable(where: str, error: OSError) -> DataError:
    return DataError(
        f"{where} can't be read: {reason_of(error)} ({error.filename!r}).",
        public="its data can't be read: its own log says why.",
    )
