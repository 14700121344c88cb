"""Any image dataset of the Hugging Face hub, through flwr-datasets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, Image
from flwr_datasets import FederatedDataset
from huggingface_hub.utils import get_session

from fedmitr_app.config import DataConfig
from fedmitr_app.errors import DataError
from fedmitr_app.partitions.columns import find_image_column
from fedmitr_app.partitions.rows import Indices, Rows, make_rows, require_column
from fedmitr_app.partitions.splits import TEST_SPLITS

SECONDS_FOR_AN_ANSWER = 10.0


def read_hub(data: DataConfig) -> tuple[Rows, Rows | None]:
    """Return the rows of the ``train`` split, and those of the test split if it has one.

    ``data.name`` is ``owner/name``, or ``owner/name:subset``. The download is cached by
    the datasets library as it always is; images stay encoded there.

    Raises
    ------
    DataError, ConfigError
        If the hub can't be reached, or lacks the dataset, the split or a column.
    """
    name, _, subset = data.name.partition(":")
    # Shuffling is done once, for every source, when the rows are dealt.
    source = FederatedDataset(
        dataset=name, subset=subset or None, partitioners={}, shuffle=False
    )
    where = f"data.name = {data.name!r}"
    if not Path(name).is_dir():  # which the datasets library takes for the dataset itself
        _require_hub(where)
    try:
        train = source.load_split("train")
    except Exception as error:
        # The hub client, its network stack and the builders raise many unrelated kinds.
        raise DataError(
            f"{where} could not be loaded from the Hugging Face hub ({_reason(error)}): check "
            "the name, its subset (owner/name:subset) and the network, or use local files with "
            "data.source = 'parquet' or 'image-folder'."
        ) from error
    test = _first_split(source)
    return _rows(train, data, where), None if test is None else _rows(test, data, where)


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
            f"answer ({_reason(error)}): check the network, set HF_HUB_OFFLINE=1 before the "
            "SuperLink or SuperNode starts (the apps inherit it) to use what is in the cache, or "
            "use local files with data.source = 'parquet' or 'image-folder'."
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _first_split(source: FederatedDataset) -> Dataset | None:
    for name in TEST_SPLITS:
        try:
            return source.load_split(name)
        except ValueError:  # no split of that name
            continue
    return None


def _rows(split: Dataset, data: DataConfig, where: str) -> Rows:
    features = split.features
    label = require_column("data.label-column", data.label_column, list(features), where)
    image = find_image_column(features, data.image_column, where)
    images = split.select_columns([image])
    if isinstance(features[image], Image):
        images = images.cast_column(image, Image(decode=False))

    def cells(rows: Indices) -> Iterator[Any]:
        return (row[image] for row in images.select(rows))

    kind = features[label]
    return make_rows(
        split[label][:],
        cells,
        where,
        names=kind.names if isinstance(kind, ClassLabel) else None,
        domains=split[data.domain_column][:] if data.domain_column in features else None,
    )
