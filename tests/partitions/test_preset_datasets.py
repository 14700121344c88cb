"""The presets' datasets, from the hub and from local files: small stand-ins, the same code."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from fedmitr_app.config import Config, ModelConfig, parse_config
from fedmitr_app.config.schema import ClientConfig
from fedmitr_app.errors import ConfigError, DataError
from fedmitr_app.models import InputSpec, build_vit
from fedmitr_app.partitions import class_names, label_matrix, load_shard, load_test_set
from fedmitr_app.partitions.sources import load_source
from fedmitr_app.training import fit

from .small_sets import CLASSES, DOMAINS, photos, shade_of, write_folders, write_table

SOURCES = ("hub", "parquet", "image-folder")
EVERY = list(photos())


@pytest.fixture(autouse=True)
def no_cache_at_home(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def config_of(preset: str, source: str, path: Path, settings: dict | None = None) -> Config:
    """As a user changes the preset; a local folder stands in for a dataset of the hub."""
    where = {"data.name": str(path)} if source == "hub" else {"data.path": str(path)}
    return parse_config({"preset": preset, "data.source": source, **where, **(settings or {})})


def write_splits(root: Path, source: str, splits: dict[str, list], **kwargs) -> Path:
    for split, chosen in splits.items():
        if source == "image-folder":
            write_folders(root / split, chosen, domains=False)
        else:
            write_table(root / f"{split}-00000-of-00001.parquet", chosen, **kwargs)
    return root


def shades(images: torch.Tensor) -> set[int]:
    """Every shade there is, having checked that the pictures are grey all over."""
    assert (images == images[:, :1, :1, :1]).all()
    return set(images[:, 0, 0, 0].tolist())


# --- Office-Home: one split, four domains, classes that some domains lack


@pytest.fixture(params=SOURCES)
def office_home(request, tmp_path):
    """The source's name, and the path of the small Office-Home."""
    root = tmp_path / "office-home"
    if request.param == "image-folder":
        write_folders(root, EVERY)
        (root / "ImageInfo.csv").write_text("as the distributed archive has it")
    else:
        write_table(root / "train-00000-of-00002.parquet", EVERY[::2])
        write_table(root / "train-00001-of-00002.parquet", EVERY[1::2])
    return request.param, root


def test_a_client_of_office_home_is_a_domain(office_home):
    config = config_of("office-home-deit-tiny", *office_home, {"data.image-size": 8})
    seed, data, partition = config.seed, config.data, config.partition
    assert class_names(data) == CLASSES
    held = label_matrix(data, partition, 4, seed)
    for client, domain in enumerate(DOMAINS):
        shard = load_shard(data, partition, client, 4, seed)
        assert shard.images.shape == (len(shard), 3, 8, 8)
        assert held[client].tolist() == list(shard.label_counts())
        present = [CLASSES[label] for label in shard.labels.unique().tolist()]
        assert shades(shard.images) == {shade_of(domain, name) for name in present}
    assert held[0, CLASSES.index("Bed")] == 0 and held[1, CLASSES.index("TV")] == 0
    test = load_test_set(data)
    assert len(test) == round(0.2 * len(EVERY)) == len(EVERY) - held.sum()
    # Stratified by class: a fifth of each.
    assert test.label_counts() == tuple(held.sum(0) // 4)


def test_office_home_dealt_by_dirichlet(office_home):
    asked = {"data.image-size": 8, "partition.kind": "dirichlet"}
    config = config_of("office-home-deit-tiny", *office_home, asked)
    assert config.partition.kind == "dirichlet"
    held = label_matrix(config.data, config.partition, 3, config.seed)
    assert held.sum() == len(EVERY) - len(load_test_set(config.data))
    assert held.sum(1).min() >= config.partition.min_samples


def test_a_user_may_deal_office_home_otherwise(office_home):
    source, path = office_home
    config = config_of("office-home-deit-tiny", source, path, {"partition.kind": "iid"})
    sizes = label_matrix(config.data, config.partition, 7, config.seed).sum(1)
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("nodes", [3, 5])
def test_more_or_fewer_nodes_than_domains(office_home, nodes):
    config = config_of("office-home-deit-tiny", *office_home)
    with pytest.raises(ConfigError) as error:
        label_matrix(config.data, config.partition, nodes, config.seed)
    message = str(error.value)
    assert message.startswith(f"num-supernodes = {nodes} ") and "\n" not in message
    assert "4, one for each domain" in message and "'Real World'" in message


def test_domains_that_are_not_where_the_settings_say(tmp_path):
    path = write_table(tmp_path / "a.parquet", EVERY)
    config = config_of("office-home-deit-tiny", "parquet", path, {"data.domain-column": "style"})
    with pytest.raises(ConfigError, match=r"partition.kind = 'natural'.*data.domain-column"):
        load_shard(config.data, config.partition, 0, 4, 0)


# --- Mini-ImageNet: train, validation and test

TRAIN, SOME, OTHERS = EVERY[::2], EVERY[1::4], EVERY[3::4]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("splits", [("validation", "test"), ("validation",), ("val",), ("test",)])
def test_the_test_split_or_else_the_validation_split_is_held_out(tmp_path, source, splits):
    wanted = SOME if "test" in splits else OTHERS
    chosen = {split: SOME if split == "test" else OTHERS for split in splits}
    root = write_splits(tmp_path / "set", source, {"train": TRAIN, **chosen})
    config = config_of("mini-imagenet-deit-tiny", source, root, {"data.image-size": 8})
    found = load_source(config.data)
    assert (len(found.train), len(found.test)) == (len(TRAIN), len(wanted))
    assert shades(load_test_set(config.data).images) == {photo.shade for photo in wanted}
    assert found.class_names == CLASSES


@pytest.mark.parametrize("source", SOURCES)
def test_a_training_split_alone_is_parted(tmp_path, source):
    root = tmp_path / "set"
    if source == "image-folder":
        write_folders(root, TRAIN, domains=False)
    else:
        write_splits(root, source, {"train": TRAIN})
    found = load_source(config_of("mini-imagenet-deit-tiny", source, root).data)
    assert len(found.train) + len(found.test) == len(TRAIN)
    assert len(found.test) == round(0.2 * len(TRAIN))


@pytest.mark.parametrize("source", SOURCES)
def test_splits_with_classes_of_their_own_make_no_test_set(tmp_path, source):
    # As the few-shot task's version of Mini-ImageNet has them.
    known = [photo for photo in EVERY if photo.name in CLASSES[:2]]
    novel = [photo for photo in EVERY if photo.name == "TV"]
    root = write_splits(tmp_path / "set", source, {"train": known, "test": novel}, label="word")
    with pytest.raises(DataError, match=r"the class 'TV', which the training images don't have"):
        load_source(config_of("mini-imagenet-deit-tiny", source, root).data)


def test_a_hub_dataset_without_a_training_split(tmp_path):
    root = write_splits(tmp_path / "set", "hub", {"test": TRAIN})
    with pytest.raises(DataError) as error:
        load_source(config_of("mini-imagenet-deit-tiny", "hub", root).data)
    assert "data.name" in str(error.value) and "train" in str(error.value)


@pytest.mark.parametrize("source", ["hub", "parquet"])
@pytest.mark.parametrize("image", ["image", "img"])
@pytest.mark.parametrize(
    ("label", "names"), [("class", CLASSES), ("word", CLASSES), ("number", tuple("0123"))]
)
def test_columns_and_labels_of_every_kind(tmp_path, source, image, label, names):
    root = write_splits(tmp_path / "set", source, {"train": EVERY}, image=image, label=label)
    data = config_of("mini-imagenet-deit-tiny", source, root, {"data.image-size": 8}).data
    test = load_test_set(data)
    assert test.class_names == names
    numbers = [shade % 60 // 10 for shade in test.images[:, 0, 0, 0].tolist()]
    assert test.labels.tolist() == numbers


# --- CIFAR-10 at 224 px: small in memory, large in the model


@pytest.mark.parametrize("source", SOURCES)
def test_cifar10_is_held_at_its_own_size(tmp_path, source):
    root = write_splits(tmp_path / "set", source, {"train": TRAIN, "test": SOME}, image="img")
    config = config_of("cifar10-deit-tiny-224", source, root)
    data = config.data
    test = load_test_set(data)
    assert test.images.shape == (len(SOME), 3, 32, 32) and test.images.dtype == torch.uint8
    shard = load_shard(data, config.partition, 0, 2, config.seed)
    assert shard.images.shape[1:] == (3, 32, 32)
    spec = InputSpec(data.image_size, data.channels, data.mean, data.std)
    assert spec.normalise(test.images[:2]).shape == (2, 3, 224, 224)


def test_a_client_trains_on_images_that_are_held_small(tmp_path):
    path = write_table(tmp_path / "a.parquet", EVERY, image="img")
    config = config_of(
        "cifar10-deit-tiny-224", "parquet", path, {"data.image-size": 16, "data.stored-size": 8}
    )
    data = config.data
    shard = load_shard(data, config.partition, 0, 2, config.seed)
    assert shard.images.shape[1:] == (3, 8, 8)
    spec = InputSpec(data.image_size, data.channels, data.mean, data.std)
    tiny = ModelConfig(patch_size=8, width=16, depth=1, heads=1)
    client = ClientConfig(epochs=1, augment="shift-flip")
    model = build_vit(tiny, spec, len(CLASSES), 0)
    done = fit(model, shard, client, generator=torch.Generator().manual_seed(0), device="cpu")
    assert np.isfinite(done["train_loss"])
