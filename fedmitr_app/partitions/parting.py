"""Which of the files below ``data.path`` and ``data.test-path`` train, and which test."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedmitr_app.config import DataConfig
from fedmitr_app.errors import DataError
from fedmitr_app.files import existing_path
from fedmitr_app.partitions.splits import choose, choose_test
from fedmitr_app.partitions.tree import Tree, walk, without

SplitsOf = Callable[[Tree], dict[str, list[Path]]]
"""Sorts a tree's files by split; '' is what has no split's name."""


@dataclass(frozen=True)
class Part:
    """The files of one split: '' if they have no split's name."""

    files: list[Path]
    split: str
    tree: Tree
    where: str


def part(
    data: DataConfig,
    suffixes: frozenset[str],
    splits_of: SplitsOf,
    *,
    wanted: str,
    others_train: bool,
) -> tuple[Part, Part | None, tuple[str, ...]]:
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

    Raises
    ------
    DataError
        If there is nothing to train on, or nobody can tell the splits apart.
    """
    where = f"data.path = {data.path!r}"
    tree = walk(existing_path("data.path", data.path, DataError), suffixes, where)
    seen, test = tree.notes(), None
    if data.test_path:
        test = _test_path(data, suffixes, splits_of, wanted)
        left = without(tree.files, test.files)
        if tree.files and not left:
            raise DataError(
                f"{where} holds nothing that {test.where} does not hold too: what is tested on "
                "can't be trained on, so give each its own."
            )
        tree.files = left
    splits = _splits(tree, splits_of, wanted)
    train, held, notes = choose(splits, where, others_train=others_train)
    if test is not None:
        notes = [f"the {held} split of data.path left out"] if held else []
    elif held:
        test = Part(splits[held], held, tree, f"the test images of {where}")
    files = without(splits[train], test.files) if test else splits[train]
    return Part(files, train, tree, where), test, (*notes, *seen)


def _test_path(
    data: DataConfig, suffixes: frozenset[str], splits_of: SplitsOf, wanted: str
) -> Part:
    where = f"data.test-path = {data.test_path!r}"
    tree = walk(existing_path("data.test-path", data.test_path, DataError), suffixes, where)
    splits = _splits(tree, splits_of, wanted)
    split = choose_test(splits, where)
    return Part(splits[split], split, tree, where)


def _splits(tree: Tree, splits_of: SplitsOf, wanted: str) -> dict[str, list[Path]]:
    if not tree.files:
        raise DataError(
            f"{tree.where} holds no {wanted}{_but(tree)}: point it at some.",
            public=f"its data hold no {wanted}.",
        )
    # A file that the setting itself names is what the setting says, whatever its name.
    return {"": tree.files} if tree.single else splits_of(tree)


def _but(tree: Tree) -> str:
    notes = tree.notes()
    return f" ({'; '.join(notes)})" if notes else ""
