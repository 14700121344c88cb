"""Any image dataset of the Hugging Face hub, through flwr-datasets."""

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Image, concatenate_datasets
from flwr_datasets import FederatedDataset
from huggingface_hub import constants
from huggingface_hub.utils import get_session

from fedmitr_app.config import DataConfig
from fedmitr_app.errors import DataError
from fedmitr_app.partitions.columns import find_image_column
from fedmitr_app.partitions.labels import Indices, has_labels
from fedmitr_app.partitions.names import some_names
from fedmitr_app.partitions.rows import Reading, Rows, make_rows, require_column
from fedmitr_app.partitions.split_files import tests_wanted
from fedmitr_app.partitions.splits import (
    TEST,
    TRAIN,
    UNLABELLED,
    VALIDATION,
    choose,
    kinds_of,
    plain_split_of,
    validation_may_test,
)
from fedmitr_app.utils.files import kind_and_reason

SECONDS_FOR_AN_ANSWER = 10.0


def read_hub(data: DataConfig, domains: bool) -> Reading:
    """Return the rows of the training split, and those of the test split if it has one.

    ``data.name`` is ``owner/name``, or ``owner/name:subset``. The download is cached by
    the datasets library as it always is; images stay encoded there. Splits are known by their
    names (see ``splits.py``); of several of one kind the one that is called plainly so counts,
    or else all of them.

    Parameters
    ----------
    domains : bool
        Whether to read the domain column, if there is one.

    Raises
    ------
    DataError, ConfigError
        If the hub can't be reached, or lacks the dataset, the split or a column.
    """
    name, _, subset = data.name.partition(":")
    where = f"data.name = {data.name!r}"
    notes: list[str] = []

    def choose_splits(found: DatasetDict) -> DatasetDict:
        chosen, told = _choose(found, data, where)
        notes.extend(told)
        return chosen

    # Shuffling is done once, for every source, when the rows are dealt.
    source = FederatedDataset(
        dataset=name,
        subset=subset or None,
        partitioners={},
        shuffle=False,
        preprocessor=choose_splits,
    )
    if not Path(name).is_dir():  # which the datasets library takes for the dataset itself
        _require_hub(where)
    try:
        train = source.load_split(TRAIN)
    except DataError:
        raise
    except Exception as error:
        # The hub client, its network stack and the builders raise many unrelated kinds.
        raise DataError(
            f"{where} could not be loaded from the Hugging Face hub ({kind_and_reason(error)}): "
            "check the name, its subset (owner/name:subset) and the network, or use local files "
            "with data.source = 'parquet' or 'image-folder'.",
            public="its dataset could not be loaded from the Hugging Face hub: its own log says "
            "why.",
        ) from error
    try:
        test = source.load_split(TEST)
    except ValueError:  # no split of that name
        _require_one_split(name, subset, where)
        return Reading(_rows(train, data, domains, where), notes=tuple(notes))
    tests = partial(_rows, test, data, domains, f"the test set of {where}")
    return Reading(_rows(train, data, domains, where), tests, tuple(notes))


def _choose(found: DatasetDict, data: DataConfig, where: str) -> tuple[DatasetDict, list[str]]:
    """Return what to train and test on under those names, and notes on what is left out."""
    splits: dict[str, list[str]] = {}
    for name in found:
        split = plain_split_of(name)
        if split or not kinds_of(name):  # nobody knows what "train_test" is, nor can rename it
            splits.setdefault(split, []).append(name)
    others = splits.get("", ())
    if TRAIN in splits:
        # Others beside it ("extra", "unlabeled") are the publisher's own extras.
        splits.pop("", None)
    elif len(others) > 1 or not splits:
        raise DataError(
            f"{where} has no split called 'train', but {some_names(list(found))}: choose a subset "
            "(owner/name:subset) that has one, or use local files with data.source = 'parquet' or "
            "'image-folder'."
        )
    for split, names in splits.items():
        splits[split] = [split] if split in names else names
    train, held, _ = choose(splits, where, others_train=True)
    parts = {TRAIN: _joined(found, splits[train])}
    used, notes = splits[train], []
    if held:
        parts[TEST] = _joined(found, splits[held])
        if validation_may_test(splits) and tests_wanted(data):
            if not _labelled(parts[TEST], data.label_column):
                held, notes = VALIDATION, [UNLABELLED]
                parts[TEST] = _joined(found, splits[held])
        used = used + splits[held]
    rest = [name for name in found if name not in used]
    return DatasetDict(parts), [*notes, *([f"splits left out: {some_names(rest)}"] if rest else [])]


def _below(file: str, roots: Iterable[str]) -> str:
    found = (os.path.relpath(file, root) for root in roots if Path(file).is_relative_to(root))
    return next(found, Path(file).name)


def _joined(found: DatasetDict, names: list[str]) -> Dataset:
    return concatenate_datasets([found[name] for name in names])


def _labelled(split: Dataset, column: str) -> bool:
    return column in split.features and has_labels(_column(split, column))


def _column(split: Dataset, name: str) -> pa.ChunkedArray:
    return split.select_columns([name]).with_format("arrow")[:].column(name)


def _require_one_split(name: str, subset: str, where: str) -> None:
    """Refuse files of two splits that the datasets library has pooled: it knows no capitals.

    Where it can't tell the files' names any more (from its cache alone), nothing is checked.
    """
    try:
        builder = datasets.load_dataset_builder(name, subset or None)
        files = [str(file) for its in builder.config.data_files.values() for file in its]
    except Exception:  # as many kinds as when the dataset itself is loaded, which has gone well
        return
    # Below the local folder, or behind "hf://datasets/owner/name@".
    if Path(name).is_dir():
        roots = (os.path.abspath(name), os.path.realpath(name))
        below = [_below(file, roots) for file in files]
    else:
        below = [file.rpartition("@")[2] for file in files]
    words = {word for file in below for word in Path(file).with_suffix("").parts}
    found = {plain_split_of(word) for word in words} - {""}
    if len(found) > 1:
        raise DataError(
            f"{where} has a single split, made of files that are called like "
            f"{some_names(sorted(found))}: use local files with data.source = 'parquet', or a "
            "dataset that tells them apart."
        )


def _require_hub(where: str) -> None:
    """Ask the hub for a sign of life: its own client goes on for minutes where none comes.

    Offline mode, which only looks into the cache, needs none.
    """
    if datasets.config.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(datasets.config.HF_ENDPOINT, timeout=SECONDS_FOR_AN_ANSWER)
    except Exception as error:  # its network stack differs from version to version
        raise DataError(
            f"{where} needs the Hugging Face hub, but {datasets.config.HF_ENDPOINT} does not "
            f"answer ({kind_and_reason(error)}): check the network, set HF_HUB_OFFLINE=1 before "
            "the SuperLink or SuperNode starts (the apps inherit it) to use what is in the cache, "
            "or use local files with data.source = 'parquet' or 'image-folder'."
        ) from error


def _rows(split: Dataset, data: DataConfig, domains: bool, where: str) -> Rows:
    features = split.features
    columns = list(features)
    label = require_column("data.label-column", data.label_column, columns, where)
    typed = [name for name, kind in features.items() if isinstance(kind, Image)]
    image = find_image_column(columns, typed, data.image_column, where)
    images = split.select_columns([image])
    if isinstance(features[image], Image):
        images = images.cast_column(image, Image(decode=False))

    def cells(rows: Indices) -> Iterator[Any]:
        return (row[image] for row in images.select(rows))

    kind = features[label]
    return make_rows(
        _column(split, label),
        cells,
        where,
        names=kind.names if isinstance(kind, ClassLabel) else None,
        domains=_column(split, data.domain_column)
        if domains and data.domain_column in features
        else None,
        roots=_roots(data.name),
    )


def _roots(name: str) -> tuple[Path, ...]:
    """Return where the datasets library keeps what it has downloaded, and a local dataset."""
    caches = (datasets.config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
    local = Path(name.partition(":")[0])
    return (*([local] if local.is_dir() else ()), *map(Path, caches))
