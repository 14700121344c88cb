"""What is held out is never trained on, in every source and by every way to the same file."""

import os
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmitr_app.config import DataConfig, PartitionConfig
from fedmitr_app.errors import DataError
from fedmitr_app.partitions import load_shard, load_test_set
from fedmitr_app.partitions.sources import load_source
from fedmitr_app.partitions.splits import choose, split_of

from .conftest import class_features, picture, write_parquet

WORDS = {
    "train": ("train", "training", "trainset", "trainval"),
    "test": ("test", "testing", "eval", "evaluation", "testset"),
    "validation": ("validation", "valid", "val", "dev"),
}
SPLITS = sorted(WORDS)
SEPARATORS = "-_. 0123456789"


@pytest.fixture(autouse=True)
def no_cache_at_home(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def images(root: Path, *below: str, shade: int = 0, number: int = 4) -> None:
    """``number`` pictures of a shade below each folder."""
    for name in below:
        (root / name).mkdir(parents=True, exist_ok=True)
        for row in range(number):
            picture(shade).save(root / name / f"{row}.png")


def of(source: str, path: Path, test_path: object = "") -> DataConfig:
    named = {"name": str(path)} if source == "hub" else {"path": str(path)}
    return DataConfig(source=source, **named, test_path=str(test_path), image_size=12, channels=3)


def shades(data: DataConfig) -> tuple[set[int], set[int]]:
    """Of all that is trained on, and of all that is tested on."""
    shard, test = load_shard(data, PartitionConfig(kind="iid"), 0, 1, 0), load_test_set(data)
    return tuple(set(part.images[:, 0, 0, 0].tolist()) for part in (shard, test))


# --- names


def spelt(word: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """A split's word in any case, between separators, beside words that mean nothing."""
    beside = st.sampled_from(("", "x", "cats", "shard", "of"))
    between = st.text(SEPARATORS, min_size=1, max_size=3)
    case = st.sampled_from((str.lower, str.upper, str.title))
    return st.tuples(beside, between, word, case, between, beside).map(
        lambda parts: parts[0] + parts[1] + parts[3](parts[2]) + parts[4] + parts[5]
    )


@given(
    st.sampled_from(SPLITS).flatmap(
        lambda split: st.tuples(st.just(split), spelt(st.sampled_from(WORDS[split])))
    )
)
def test_a_word_between_separators_counts_in_any_case(case):
    split, name = case
    assert split_of(name, "here") == split


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12))
def test_only_whole_words_count(word):
    slow = [split for split in SPLITS for known in WORDS[split] if known == word]
    joined = word.endswith(("set", "data", "images", "split"))
    assert joined or split_of(f"a-{word}", "here") == (slow[0] if slow else "")


@pytest.mark.parametrize(
    ("name", "split"),
    [("XTrain", "train"), ("dataTest", "test"), ("TrainVal", "train"), ("valSet", "validation")],
)
def test_humps_part_words_where_nothing_else_does(name, split):
    assert split_of(name, "here") == split


@pytest.mark.parametrize(
    "name",
    ["valley", "latest", "contest", "testify", "device", "trainer", "0000", "évaluation", "McVie"],
)
def test_words_that_only_hold_one_are_none(name):
    assert split_of(name, "here") == ""


def test_a_name_of_two_splits_is_asked_about():
    with pytest.raises(DataError, match=r"here: is 'train_test' the test or the train split\?"):
        split_of("train_test", "here")


@given(st.sets(st.sampled_from(["", *SPLITS])), st.booleans())
def test_a_held_out_split_is_never_the_training_split(splits, others_train):
    try:
        train, held, _ = choose(
            {split: [split or "x"] for split in splits}, "here", others_train=others_train
        )
    except DataError:
        # Nobody could tell, or there was nothing to train on.
        assert splits - {""} and (splits != {"train"} or "" in splits) or not splits
        return
    assert train in ("train", "") and train in splits and held in ("test", "validation", "")
    assert held == "" or held in splits
    assert held == "test" or "test" not in splits


# --- parquet


PAIRS = [
    ("x_train", "x_test"),
    ("Train-000", "TEST-000"),
    ("XTrain", "XTest"),
    ("dataset.train", "dataset.test"),
    ("training", "dev"),
    ("Training/0", "Testing/0"),
    ("a/train/0", "a/Val/0"),
    ("digits", "digits_eval"),
]


@pytest.mark.parametrize(("train", "test"), PAIRS)
def test_parquet_files_of_two_splits_in_one_folder_are_not_pooled(tmp_path, train, test):
    for name, labels in ((train, [0, 1] * 3), (test, [1, 0])):
        (tmp_path / f"{name}.parquet").parent.mkdir(parents=True, exist_ok=True)
        write_parquet(tmp_path / f"{name}.parquet", labels)
    source = load_source(of("parquet", tmp_path))
    assert (len(source.train), len(source.test)) == (6, 2)


def test_a_parquet_file_that_no_split_is_called_like_is_asked_about(tmp_path):
    for name in ("train", "test", "extra"):
        write_parquet(tmp_path / f"{name}.parquet", [0, 1])
    with pytest.raises(DataError, match=r"are those for training\? Name .* data.test-path"):
        load_source(of("parquet", tmp_path))


def test_a_parquet_folder_of_test_files_alone_trains_nobody(tmp_path):
    write_parquet(tmp_path / "x-test.parquet", [0, 1])
    with pytest.raises(DataError, match="holds no training images, only what is called 'test'"):
        load_source(of("parquet", tmp_path))
    # But a file that is named itself is what the setting says.
    assert len(load_source(of("parquet", tmp_path / "x-test.parquet")).train) == 1


@pytest.mark.parametrize("name", ["test/train", "train/val", "Testing/x_train"])
def test_a_parquet_file_of_one_split_in_the_folder_of_another_is_asked_about(tmp_path, name):
    for path in (tmp_path / f"{name}.parquet", tmp_path / "train" / "0.parquet"):
        path.parent.mkdir(exist_ok=True)
        write_parquet(path, [0, 1])
    with pytest.raises(DataError, match=f"is '{name}.parquet' the .* split, or what '"):
        load_source(of("parquet", tmp_path))


# --- hub: the datasets library knows lower-case names only


@pytest.fixture
def hub_folder(tmp_path):
    """Stands in for a dataset; the library's cache is beside it."""
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("train", "test"), [("x_train", "x_test"), ("train-0", "val-0"), ("data", "test")]
)
def test_hub_splits_by_name(hub_folder, train, test):
    write_parquet(hub_folder / f"{train}.parquet", [0, 1] * 3)
    write_parquet(hub_folder / f"{test}.parquet", [1, 0])
    if train == "data":  # the library drops it
        with pytest.raises(DataError, match="holds no training images"):
            load_source(of("hub", hub_folder))
        return
    source = load_source(of("hub", hub_folder))
    assert (len(source.train), len(source.test)) == (6, 2)


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("Training/0", "Testing/0")])
def test_hub_files_that_were_pooled_are_refused(hub_folder, train, test):
    for name in (train, test):
        (hub_folder / f"{name}.parquet").parent.mkdir(parents=True, exist_ok=True)
        write_parquet(hub_folder / f"{name}.parquet", [0, 1])
    with pytest.raises(DataError, match="single split, made of files .* 'test', 'train'"):
        load_source(of("hub", hub_folder))


def test_a_local_hub_dataset_is_judged_by_what_is_below_it(tmp_path, monkeypatch):
    """Not by the folders above it, however it is named."""
    root = tmp_path / "train_test" / "my test runs" / "set"
    root.mkdir(parents=True)
    write_parquet(root / "train-0.parquet", [0, 1] * 4)
    monkeypatch.chdir(root.parent)
    (tmp_path / "link").symlink_to(root)
    for name in ("set", "./set", str(root), str(tmp_path / "link")):
        assert len(load_source(of("hub", name)).train) == 6


def test_hub_splits_of_no_known_name(hub_folder, monkeypatch):
    rows = datasets.load_dataset(str(write_parquet(hub_folder / "a.parquet", [0, 1] * 3).parent))

    def found(*names: str):
        parts = datasets.DatasetDict({name: rows["train"] for name in names})
        monkeypatch.setattr(datasets, "load_dataset", lambda **kwargs: parts)
        return load_source(of("hub", hub_folder))

    assert len(found("all").train) == 4  # an image of each class tests
    source = found("train", "extra", "test", "validation")
    assert (len(source.train), len(source.test)) == (6, 6)
    assert "splits left out: 'extra', 'validation'" in source.read
    assert len(found("train_a", "train_b", "test").train) == 12
    source = found("train", "train_test", "test")
    assert len(source.train) == 6 and "splits left out: 'train_test'" in source.read
    assert len(found("train_val", "test").train) == 6
    with pytest.raises(DataError, match="'train_val' may hold the images of 'val' too"):
        found("train_val", "val")
    with pytest.raises(DataError, match="no split called 'train', but 'train_test'"):
        found("train_test")
    with pytest.raises(DataError, match="no split called 'train', but 'one', 'two'"):
        found("one", "two")


# --- image folders


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "test"), ("Training", "Testing"), ("TRAIN", "Val"), ("train_images", "dev2")],
)
@pytest.mark.parametrize("domain", ["", "photo/"])
def test_folders_of_splits_are_no_domains(tmp_path, train, test, domain):
    images(tmp_path, f"{train}/{domain}a", f"{train}/{domain}b", shade=10)
    images(tmp_path, f"{test}/{domain}a", shade=20, number=2)
    data = of("image-folder", tmp_path)
    assert shades(data) == ({10}, {20})
    source = load_source(data)
    assert source.class_names == ("a", "b") and (len(source.train), len(source.test)) == (8, 2)


def test_a_training_folder_alone_is_parted(tmp_path):
    images(tmp_path, "Train/a", "Train/b")
    source = load_source(of("image-folder", tmp_path))
    assert source.class_names == ("a", "b") and source.train.domains is None
    assert len(source.train) + len(source.test) == 8


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("photo/a", "art/a", "test/a"), r"like splits \('test'\) and .* not \('art', 'photo'\)"),
        # "val" tests nobody who may have been trained on it.
        (("trainval/a", "trainval/b", "val/a", "test"), "the test set .* stands in no folder"),
        (("train/a", "test/a", "extra/a"), "and parts that are not"),
        (("test/a",), "no training images, only what is called 'test'"),
        (("photo/train/a", "photo/test/a", "art/train/a", "art/test/a"), "class/image"),
        (("photo/train", "photo/test"), "'test', 'train' would be read as classes"),
        (("train", "test"), "'test', 'train' would be read as classes"),
        (("x_train", "x_test"), "'x_test', 'x_train' would be read as classes"),
        (("ISIC_Part3_Training_Data", "ISIC_Part3_Test_Data"), "would be read as classes"),
        (("cat/seg_train", "cat/seg_test", "dog/seg_train"), "would be read as classes"),
        (("train/Dev site/a", "train/train site/a"), "'Dev site', 'train site' .* as domains"),
        (("trainval/a", "val/a"), "'trainval' may hold the images of 'val' too"),
        (("a/b/c/x", "a/b/c/y"), r"they stand 4 folders deep, as 'a/b/c/x/0.png': point"),
        (("train/photo/a", "train/Test/a"), "'Test' would be read as domains"),
    ],
)
def test_folders_that_nobody_can_tell_apart_are_asked_about(tmp_path, folders, words):
    images(tmp_path, *folders)
    with pytest.raises(DataError, match=words):
        load_source(of("image-folder", tmp_path))


def test_one_class_may_be_called_like_a_split(tmp_path):
    images(tmp_path, "valid", "invalid")
    source = load_source(of("image-folder", tmp_path))
    assert source.class_names == ("invalid", "valid")
    assert "'valid' taken for a class" in source.read
    images(tmp_path / "other", "cat", "x_test")
    source = load_source(of("image-folder", tmp_path / "other"))
    assert "'x_test' taken for a class" in source.read


def test_domains_may_hold_a_splits_word_beside_no_training_folder(tmp_path):
    images(tmp_path, "dev_site/a", "dev_site/b", "prod_site/a", "prod_site/b")
    source = load_source(of("image-folder", tmp_path))
    assert source.train.domain_names == ("dev_site", "prod_site")
    assert "'dev_site' taken for a domain" in source.read


def test_training_and_validation_in_one_folder_are_for_training(tmp_path):
    images(tmp_path, "train_val/a", "train_val/b", shade=10)
    images(tmp_path, "test/a", shade=20)
    assert shades(of("image-folder", tmp_path)) == ({10}, {20})


# --- held-out images without labels, and held-out images that nobody needs


def test_a_validation_folder_stands_in_for_unlabelled_test_images(tmp_path):
    images(tmp_path, "train/a", "train/b", shade=10)
    images(tmp_path, "val/a", "val/b", shade=20)
    images(tmp_path, "test", shade=30)
    data = of("image-folder", tmp_path)
    assert shades(data) == ({10}, {20})
    note = "the test split left out, for it has no labels: the validation split tests"
    assert note in load_source(data).read


@pytest.mark.parametrize("source", ["parquet", "hub"])
@pytest.mark.parametrize("labels", [[-1, -1], [None, None]])
def test_a_validation_split_stands_in_for_an_unlabelled_test_split(
    tmp_path, hub_folder, source, labels
):
    for name, its in (("train", [0, 1] * 3), ("validation", [1, 0, 1]), ("test", labels)):
        write_parquet(hub_folder / f"{name}.parquet", its, features=class_features())
    found = load_source(of(source, hub_folder))
    assert (len(found.train), len(found.test)) == (6, 3)
    assert found.read.count("the test split left out, for it has no labels") == 1


def test_a_test_file_without_the_label_column_is_unlabelled(tmp_path):
    for name in ("train", "validation"):
        write_parquet(tmp_path / f"{name}.parquet", [0, 1, 0])
    pq.write_table(pa.table({"img": [b""]}), tmp_path / "test.parquet")
    assert len(load_source(of("parquet", tmp_path)).test) == 3


@pytest.mark.parametrize("how", [{"test_split": "validation"}, {"test_share": 0.0}])
@pytest.mark.parametrize("source", ["parquet", "hub", "image-folder"])
def test_a_test_split_that_nobody_needs_is_not_read(tmp_path, hub_folder, source, how):
    """Not by a node of data of its own, whose test_share is 0, either."""
    if source == "image-folder":
        images(hub_folder, "train/a", "train/b", "test", "test/c/d/e")
    else:
        write_parquet(hub_folder / "train.parquet", [0, 1] * 4, features=class_features())
        write_parquet(hub_folder / "test.parquet", [-1, -1], features=class_features())
    found = load_source(replace(of(source, hub_folder), **how))
    assert len(found.train) + len(found.test) == 8
    assert ("its own test images left out" in found.read) == ("test_share" in how)


def test_a_test_split_without_labels_is_told_so(tmp_path):
    images(tmp_path, "train/a", "train/b", "test")
    with pytest.raises(DataError, match="the test set .*names its class; set data.path to"):
        load_source(of("image-folder", tmp_path))


# --- data.test-path


def links(tmp_path: Path, target: Path) -> dict[str, object]:
    (tmp_path / "link").symlink_to(target)
    return {
        "plain": target,
        "link": tmp_path / "link",
        "relative": os.path.relpath(target),
        "dotted": target / ".." / target.name,
    }


@pytest.mark.parametrize("way", ["plain", "link", "relative", "dotted"])
def test_a_test_path_inside_the_training_folder_is_taken_out(tmp_path, way):
    root = tmp_path / "set"
    images(root, "a", "b", shade=10)
    images(root, "mine/a", "mine/b", shade=20, number=2)
    data = of("image-folder", root, links(tmp_path, root / "mine")[way])
    assert shades(data) == ({10}, {20})
    source = load_source(data)
    assert source.class_names == ("a", "b") and "nothing in" not in source.read


def test_a_class_that_is_a_link_into_the_test_images_trains_nobody(tmp_path):
    images(tmp_path, "train/a", "test/b", shade=10)
    images(tmp_path, "train/b", shade=30)
    images(tmp_path, "test/a", shade=20)
    (tmp_path / "train" / "c").symlink_to(tmp_path / "test" / "a")
    (tmp_path / "train" / "b" / "x.png").symlink_to(tmp_path / "test" / "a" / "0.png")
    os.link(tmp_path / "test" / "a" / "1.png", tmp_path / "train" / "b" / "y.png")
    data = of("image-folder", tmp_path)
    assert shades(data) == ({10, 30}, {10, 20})
    assert "6 files of the test set left out of training" in load_source(data).read


def test_a_file_that_goes_meanwhile_is_one_sentence(tmp_path, monkeypatch):
    images(tmp_path, "train/a", "train/b", "test/a")
    look = os.stat

    def gone(path, **how):
        if str(path).endswith("test/a/0.png"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return look(path, **how)

    monkeypatch.setattr(os, "stat", gone)
    with pytest.raises(DataError, match="can't be read: no such file or directory"):
        load_source(of("image-folder", tmp_path))


def test_a_parquet_test_file_inside_the_training_folder_is_taken_out(tmp_path):
    write_parquet(tmp_path / "a.parquet", [0, 1] * 3)
    test = write_parquet(tmp_path / "b.parquet", [1, 0])
    source = load_source(of("parquet", tmp_path, test))
    assert (len(source.train), len(source.test)) == (6, 2)


@pytest.mark.parametrize("source", ["parquet", "image-folder"])
def test_one_path_for_both_is_refused(tmp_path, source):
    images(tmp_path, "a", "b")
    write_parquet(tmp_path / "a.parquet", [0, 1])
    (tmp_path / "link").symlink_to(tmp_path / "a.parquet")
    same = tmp_path / "link" if source == "parquet" else tmp_path / "a" / ".."
    path = tmp_path / "a.parquet" if source == "parquet" else tmp_path
    with pytest.raises(DataError, match="what is tested on can't be trained on"):
        load_source(of(source, path, same))


def test_a_training_folder_inside_the_test_path_is_not_tested_on(tmp_path):
    images(tmp_path, "train/a", "train/b", shade=10)
    images(tmp_path, "test/a", shade=20)
    assert shades(of("image-folder", tmp_path / "train", tmp_path)) == ({10}, {20})
    with pytest.raises(DataError, match="holds only what is called 'train'"):
        images(tmp_path / "other", "train/a")
        load_source(of("image-folder", tmp_path / "train", tmp_path / "other"))
