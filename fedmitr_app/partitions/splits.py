"""Which part of a dataset is for training and which is held out: by name, alike in all sources."""

import re
from collections.abc import Collection

from fedmitr_app.errors import DataError
from fedmitr_app.partitions.names import some_names

TRAIN, TEST, VALIDATION = "train", "test", "validation"
# The words that the datasets library knows, and what people join to them.
_WORDS = {
    TRAIN: ("train", "training", "trainval"),
    TEST: ("test", "testing", "eval", "evaluation"),
    VALIDATION: ("validation", "valid", "val", "dev"),
}
_JOINED = ("", "set", "data", "images", "split")
_SPLIT_OF = {word + end: split for split in _WORDS for word in _WORDS[split] for end in _JOINED}
_ADVICE = "name what to read with data.path and data.test-path (of local files)"
_BETWEEN = r"[\W\d_]+"
_HUMPS = r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"


def split_of(name: str, where: str) -> str:
    """Return the split that a file, folder or split is called like: '' if none.

    A word between separators or digits counts, in any case: ``x_train``, ``Testing-000``,
    ``VAL2017``, ``XTest``; ``valley`` and ``latest`` are no such words. ``validation`` stands for
    all of its kind.

    Raises
    ------
    DataError
        For a name that speaks of two splits.
    """
    words = re.split(_BETWEEN, name)
    found = _splits_in(words) or _splits_in(re.split(f"{_BETWEEN}|{_HUMPS}", name))
    if len(found) > 1:
        raise DataError(
            f"{where}: is {name!r} the {found[0]} or the {found[1]} split? Rename it, or {_ADVICE}."
        )
    return found[0] if found else ""


def _splits_in(words: Collection[str]) -> list[str]:
    return sorted({_SPLIT_OF[word.lower()] for word in words if word.lower() in _SPLIT_OF})


def called_like_a_split(name: str) -> str:
    """Return the split whose name is the whole of this one but for digits: '' if none.

    ``train station`` may be a class or a domain; ``Train`` and ``test2`` are hardly.
    """
    return _SPLIT_OF.get(re.sub(_BETWEEN, "", name.lower()), "")


def choose(
    splits: Collection[str], where: str, *, others_train: bool
) -> tuple[str, str, list[str]]:
    """Return which split to train on ('': what has no split's name), which to hold out, and notes.

    Parameters
    ----------
    splits : Collection[str]
        Of each part that there is, as :func:`split_of` gives them.
    where : str
        The source in words, for messages.
    others_train : bool
        Whether parts without a split's name may stand for the training split where there is none.

    Returns
    -------
    tuple[str, str, list[str]]
        The held-out split is ``test``, else ``validation``, else ''. The notes are for the line
        on what was read.

    Raises
    ------
    DataError
        If there is nothing to train on, or nobody can tell whether a part is for training.
    """
    present = set(splits)
    held = TEST if TEST in present else VALIDATION if VALIDATION in present else ""
    if "" in present and (TRAIN in present or held and not others_train):
        known = some_names(sorted(present - {""}))
        raise DataError(
            f"{where} holds parts that are called like splits ({known}) and parts that are not: "
            f"are those for training? {_ADVICE.capitalize()}, or rename them."
        )
    if not present & {TRAIN, ""}:
        raise DataError(
            f"{where} holds no training images, only what is called {held!r}: name what to train "
            "on with data.path, and this with data.test-path (of local files)."
        )
    notes = [f"the {VALIDATION} split left out"] if {TEST, VALIDATION} <= present else []
    if held and "" in present:
        notes.append(f"all that isn't called {held!r} for training")
    return (TRAIN if TRAIN in present else ""), held, notes


def choose_test(splits: Collection[str], where: str) -> str:
    """Return which split of ``data.test-path`` to test on: all of it where it has none.

    Raises
    ------
    DataError
        If it holds training images alone, or nobody can tell.
    """
    if set(splits) == {""}:
        return ""
    _, held, _ = choose({*splits, TRAIN}, where, others_train=False)
    if not held:
        raise DataError(f"{where} holds only what is called {TRAIN!r}: {_ADVICE}.")
    return held


def require_no_splits(names: Collection[str], what: str, where: str) -> list[str]:
    """Return those classes that are called like a split: alone among others they may be classes.

    Raises
    ------
    DataError
        For a domain that is called so; for classes if one is called like a training split and
        one like a held-out one.
    """
    found = sorted(name for name in names if called_like_a_split(name))
    kinds = {called_like_a_split(name) == TRAIN for name in found}
    if found and (what == "domains" or len(kinds) == 2):
        raise DataError(
            f"{where}: {some_names(found)} would be read as {what}, but are called like splits: "
            f"{_ADVICE}, or rename them."
        )
    return found
