"""Which of the files below ``data.path`` and ``data.test-path`` train, and which test."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedmitr_app.config import DataConfig
from fedmitr_app.errors import DataError
from fedmitr_app.partitions.names import count_of
from fedmitr_app.partitions.splits import (
    UNLABELLED,
    VALIDATION,
    choose,
    choose_test,
    validation_may_test,
)
from fedmitr_app.partitions.tree import Tree, walk, without
from fedmitr_app.utils.files import existing_path


class Named(NamedTuple):
    """What a file belongs to: a split ('' if nothing is called like one), by the name of what."""

    split: str
    name: str


SplitsOf = Callable[[Tree], dict[Path, Named]]
"""Sorts a tree's files by split."""


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split: '' if they have no split's name."""

    files: list[Path]
    split: str
    tree: Tree
    where: str


def tests_wanted(data: DataConfig) -> bool:
    """Tell whether a split for testing is looked at: a node's own, and tuning, do without."""
    return data.test_share > 0 and data.test_split != "validation"


def part(
    data: DataConfig,
    suffixes: frozenset[str],
    splits_of: SplitsOf,
    *,
    wanted: str,
    others_train: bool,
    labelled: Callable[[SplitFiles], bool],
) -> tuple[SplitFiles, SplitFiles | None, tuple[str, ...]]:
    """Return what to train on, what to test on if there is any, and notes on the rest.

    ``data.test_path`` goes before the splits of ``data.path``. What is tested on trains nobody,
    wherever it stands and however it is linked.

    Parameters
    ----------
    suffixes : frozenset[str]
        Of the files that count.
    splits_of : SplitsOf
        How files are sorted into splits.
    wanted : str
        What the files are, for messages.
    others_train : bool
        As for :func:`choose`.
    labelled : Callable[[SplitFiles], bool]
        Tells whether a part has any label: for a test split that has none, as competitions
        publish it, a validation split stands in.

    Raises
    ------
    DataError
        If there is nothing to train on, or nobody can tell the splits apart.
    """
    where = f"data.path = {data.path!r}"
    tree = walk(existing_path("data.path", data.path, DataError), suffixes, where)
    seen, test, out = tree.notes(), None, 0
    if data.test_path:
        test = _test_path(data, suffixes, splits_of, wanted)
        tree.files, out = _untested(tree.files, test, where)
    splits, names = _splits(tree, splits_of, wanted)
    train, held, notes = choose(names, where, others_train=others_train)
    files = splits[train]
    if test is not None:
        notes = [f"the {held} split of data.path left out"] if held else []
    elif held:
        test = _test_of(splits[held], held, tree)
        if validation_may_test(names) and tests_wanted(data) and not labelled(test):
            test = _test_of(splits[VALIDATION], VALIDATION, tree)
            notes = [UNLABELLED]
        files, out = _untested(files, test, where)
    if out:
        notes.append(f"{count_of(out, 'file')} of the test set left out of training")
    return SplitFiles(files, train, tree, where), test, (*notes, *seen)


def _test_of(files: list[Path], split: str, tree: Tree) -> SplitFiles:
    return SplitFiles(files, split, tree, f"the test set of {tree.where}")


def _untested(files: list[Path], test: SplitFiles, where: str) -> tuple[list[Path], int]:
    """Return the files that are not tested on, and how many are."""
    left = without(files, test.files, where)
    if files and not left:
        raise DataError(
            f"{where} holds nothing that {test.where} does not hold too: what is tested on can't "
            "be trained on, so give each its own."
        )
    return left, len(files) - len(left)


def _test_path(
    data: DataConfig, suffixes: frozenset[str], splits_of: SplitsOf, wanted: str
) -> SplitFiles:
    where = f"data.test-path = {data.test_path!r}"
    tree = walk(existing_path("data.test-path", data.test_path, DataError), suffixes, where)
    splits, names = _splits(tree, splits_of, wanted)
    split = choose_test(names, where)
    return SplitFiles(splits[split], split, tree, where)


def _splits(
    tree: Tree, splits_of: SplitsOf, wanted: str
) -> tuple[dict[str, list[Path]], dict[str, list[str]]]:
    """Return each split's files, and the names of its parts."""
    if not tree.files:
        raise DataError(
            f"{tree.where} holds no {wanted}{_but(tree)}: point it at some.",
            public=f"its data hold no {wanted}.",
        )
    if tree.single:  # a file that the setting itself names is what it says, whatever its name
        return {"": tree.files}, {"": [tree.files[0].name]}
    files: dict[str, list[Path]] = {}
    names: dict[str, dict[str, None]] = {}
    for path, (split, name) in splits_of(tree).items():
        files.setdefault(split, []).append(path)
        names.setdefault(split, {})[name] = None
    return files, {split: list(its) for split, its in names.items()}


def _but(tree: Tree) -> str:
    notes = tree.notes()
    return f" ({'; '.join(notes)})" if notes else ""
