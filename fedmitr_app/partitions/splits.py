"""Which part of a dataset is for training and which is held out: by name, alike in all sources."""

import re
from collections.abc import Collection, Mapping, Sequence

from fedmitr_app.errors import DataError
from fedmitr_app.partitions.names import some_names

Named = Mapping[str, Sequence[str]]
"""Names of parts by split; '' is the split of what has no split's name."""
TRAIN, TEST, VALIDATION = "train", "test", "validation"
# The words that the datasets library knows, and what people join to them.
_WORDS = {
    (TRAIN,): ("train", "training"),
    (TEST,): ("test", "testing", "eval", "evaluation"),
    (VALIDATION,): ("validation", "valid", "val", "dev"),
    (TRAIN, VALIDATION): ("trainval",),
}
_JOINED = ("", "set", "data", "images", "split")
_KINDS_OF = {word + end: kinds for kinds in _WORDS for word in _WORDS[kinds] for end in _JOINED}
UNLABELLED = f"the {TEST} split left out, for it has no labels: the {VALIDATION} split tests"
"""A note."""
_ADVICE = "name what to read with data.path and data.test-path (of local files)"
_BETWEEN = r"[\W\d_]+"
_HUMPS = r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"


def kinds_of(name: str) -> frozenset[str]:
    """Return the splits that a name speaks of, mostly one or none.

    A word between separators or digits counts, in any case: ``x_train``, ``Testing-000``,
    ``VAL2017``, ``XTest``; ``valley`` and ``latest`` are no such words.
    """
    words = re.split(_BETWEEN, name)
    return _kinds_in(words) or _kinds_in(re.split(f"{_BETWEEN}|{_HUMPS}", name))


def _kinds_in(words: Collection[str]) -> frozenset[str]:
    return frozenset(kind for word in words for kind in _KINDS_OF.get(word.lower(), ()))


def plain_split_of(name: str) -> str:
    """Return the split that a file, folder or split is called like: '' if none, or nobody knows.

    ``train_val`` is for training, as ``trainval`` is; ``test_dev`` is for testing. ``validation``
    stands for all of its kind.
    """
    kinds = kinds_of(name)
    if {TRAIN, TEST} <= kinds:
        return ""
    return next((split for split in (TRAIN, TEST, VALIDATION) if split in kinds), "")


def split_of(name: str, where: str) -> str:
    """Return what :func:`plain_split_of` does, but nothing that nobody knows.

    Raises
    ------
    DataError
        For a name that speaks of training and of testing.
    """
    split = plain_split_of(name)
    if kinds_of(name) and not split:
        raise DataError(
            f"{where}: is {name!r} the {TEST} or the {TRAIN} split? Rename it, or {_ADVICE}."
        )
    return split


def called_like_a_split(name: str) -> bool:
    """Tell whether the whole of a name, but for digits, is a split's.

    ``train station`` may be a class or a domain; ``Train`` and ``test2`` are hardly.
    """
    return re.sub(_BETWEEN, "", name.lower()) in _KINDS_OF


def choose(splits: Named, where: str, *, others_train: bool) -> tuple[str, str, list[str]]:
    """Return which split to train on ('': what has no split's name), which to hold out, and notes.

    Parameters
    ----------
    splits : Mapping[str, Sequence[str]]
        The names of each split's parts, sorted as :func:`split_of` says.
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
    held = TEST if TEST in splits else VALIDATION if VALIDATION in splits else ""
    known = [name for split in sorted(splits.keys() - {""}) for name in splits[split][:2]]
    if "" in splits and (TRAIN in splits or held and not others_train):
        raise DataError(
            f"{where} holds parts that are called like splits ({some_names(known)}) and parts that "
            f"are not ({some_names(splits[''], 2)}): are those for training? "
            f"{_ADVICE.capitalize()}, or rename them."
        )
    if not splits.keys() & {TRAIN, ""}:
        raise DataError(
            f"{where} holds no training images, only what is called {held!r} ({some_names(known)}):"
            " name what to train on with data.path, and this with data.test-path (of local files)."
        )
    both = _with_validation(splits)
    if held == VALIDATION and both:
        raise DataError(
            f"{where}: {both[0]!r} may hold the images of {splits[held][0]!r} too, and what is "
            f"tested on can't be trained on: {_ADVICE}, or rename it."
        )
    notes = [f"the {VALIDATION} split left out"] if {TEST, VALIDATION} <= splits.keys() else []
    if held and "" in splits:
        notes.append(f"all that isn't called {held!r} for training")
    return (TRAIN if TRAIN in splits else ""), held, notes


def validation_may_test(splits: Named) -> bool:
    """Tell whether a validation split beside the test split can stand in for it."""
    return {TEST, VALIDATION} <= splits.keys() and not _with_validation(splits)


def _with_validation(splits: Named) -> list[str]:
    """Return the training parts that may hold the validation images too, as ``train_val``."""
    return [name for name in splits.get(TRAIN, ()) if VALIDATION in kinds_of(name)]


def choose_test(splits: Named, where: str) -> str:
    """Return which split of ``data.test-path`` to test on: all of it where it has none.

    Raises
    ------
    DataError
        If it holds training images alone, or nobody can tell.
    """
    if splits.keys() == {""}:
        return ""
    _, held, _ = choose({TRAIN: (), **splits}, where, others_train=False)
    if not held:
        raise DataError(f"{where} holds only what is called {TRAIN!r}: {_ADVICE}.")
    return held


def require_no_splits(names: Collection[str], what: str, where: str) -> list[str]:
    """Return those classes or domains that are called like a split, and may be none.

    Raises
    ------
    DataError
        If one is called like a training split and one like a held-out one; also for a domain
        whose whole name is a split's.
    """
    found = sorted(name for name in names if plain_split_of(name))
    kinds = {plain_split_of(name) == TRAIN for name in found}
    if len(kinds) == 2 or what == "domains" and any(map(called_like_a_split, found)):
        raise DataError(
            f"{where}: {some_names(found)} would be read as {what}, but are called like splits: "
            f"{_ADVICE}, or rename them."
        )
    return found
