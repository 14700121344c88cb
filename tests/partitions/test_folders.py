"""Image folders as people lay them out: links, leftovers, drawings, other files."""

import os

import pytest
from PIL import Image

from fedmitr_app.errors import DataError
from fedmitr_app.partitions import load_shard, load_test_set
from fedmitr_app.partitions.images import SUFFIXES
from fedmitr_app.partitions.sources import load_source

from .conftest import picture, write_parquet
from .test_sources import IID, of_folder, of_parquet, refusal


def read(folder) -> str:
    return load_source(of_folder(folder)).read


# --- one line says what was read


def test_one_line_says_what_was_read(folder):
    (folder / "cat").mkdir()
    (folder / "dog" / "old").mkdir(parents=True)
    (folder / "ant" / "scan.dcm").write_bytes(b"x")
    (folder / "ant" / "notes.txt").write_text("x")
    (folder / "ant" / "more.TXT").write_text("x")
    (folder / "README").write_text("x")
    assert read(folder) == (
        "data.source = 'image-folder': 8 images of 2 classes (4 of each class), 6 for training, "
        "2 for testing, 1 of each class (held out, data.test-share = 0.2); nothing in 'cat', "
        "'dog'; skipped 2 .txt, 1 .dcm, 1 without a suffix"
    )
    test = load_test_set(of_folder(folder))
    assert test.read == read(folder)
    shard = load_shard(of_folder(folder), IID, 0, 2, 0)
    assert shard.read.startswith(f"{len(shard)} images of ")
    assert shard.read.endswith(f" are this client's, of {test.read}")
    assert shard.take(shard.labels[:0]).read == shard.read


def test_the_line_tells_domains_and_limits(tmp_path):
    for name in ("art/a", "art/b", "photo/a", "photo/b"):
        (tmp_path / name).mkdir(parents=True)
        for row in range(5):
            picture(row).save(tmp_path / name / f"{row}.png")
    line = load_source(of_folder(tmp_path, max_train=4, test_share=0.5)).read
    assert (
        "20 images of 2 classes in 2 domains (10 of each class), 4 of 10 (data.max-train)" in line
    )
    write_parquet(tmp_path / "x_train.parquet", [0, 1])
    write_parquet(tmp_path / "x_test.parquet", [0])
    write_parquet(tmp_path / "x_val.parquet", [0])
    line = load_source(of_parquet(tmp_path)).read
    assert "3 images of 2 classes (the smallest class, '1', has 1), 2 for training, 1 for" in line
    assert "1 for testing, 0 to 1 of each class (its own test images); the validation" in line
    assert "skipped 20 .png" in line


# --- what a run would learn little from


def photographs(folder, count=3, size=(100, 80), mode="RGB"):
    for name in ("ant", "bee"):
        (folder / name).mkdir(parents=True)
        for row in range(count):
            picture(row, size=size, mode=mode).save(folder / name / f"{row}.png")
    return folder


SHRUNK = "shrunk to data.image-size = 16 pixels a side"
GREY = "read without their colours, data.channels = 1"


@pytest.mark.parametrize(
    ("look", "settings", "words"),
    [
        ({}, {"image_size": 16}, [SHRUNK, "set data.image-size = 224, or preset = 'photos'"]),
        ({}, {"image_size": 32, "channels": 1}, [GREY, "set data.channels = 3, or preset"]),
        ({}, {"image_size": 16, "channels": 1}, [f"of about 80 pixels a side are {SHRUNK} and"]),
        ({}, {"image_size": 32, "stored_size": 8}, ["shrunk to data.stored-size = 8"]),
        ({"mode": "L"}, {"image_size": 16, "channels": 1}, [SHRUNK]),
        ({}, {"image_size": 17}, []),
        ({"mode": "L"}, {"image_size": 17, "channels": 1}, []),
        ({"size": (100, 64)}, {"image_size": 16, "channels": 1}, []),
    ],
)
def test_photographs_of_which_little_is_left_are_warned_of(tmp_path, look, settings, words):
    warning = load_source(of_folder(photographs(tmp_path / "images", **look), **settings)).warning
    assert bool(words) == bool(warning) and warning.count(". ") == 0
    assert all(each in warning for each in words)


def test_few_headers_tell_photographs_and_no_pixels(tmp_path, monkeypatch):
    folder = photographs(tmp_path / "images", count=40)
    for path in folder.glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:60])  # its header, whole, and nothing to decode
    (folder / "ant" / "0.png").write_bytes(b"no image")
    opened = []
    real = Image.open
    monkeypatch.setattr(
        Image, "open", lambda path, **known: opened.append(path) or real(path, **known)
    )
    assert "shrunk" in load_source(of_folder(folder)).warning
    assert len(opened) == len(set(opened)) == 32
    assert {path.parent.name for path in opened} == {"ant", "bee"}


def test_a_class_of_one_image_is_warned_of_where_images_are_held_out(folder, caplog):
    (folder / "cat").mkdir()
    picture(0).save(folder / "cat" / "0.png")
    test = load_test_set(of_folder(folder))
    assert "(the smallest class, 'cat', has 1)" in test.read
    (warning,) = caplog.messages
    assert "the class 'cat' has a single image" in warning and "data.test-share = 0.2" in warning
    assert load_source(of_folder(folder, test_share=0.0)).warning == ""
    own = photographs(folder.parent / "own", count=1, size=(12, 12))
    assert load_source(of_folder(folder, test_path=str(own))).warning == ""
    assert (
        "'cat'"
        in load_source(of_folder(folder, test_path=str(own), test_split="validation")).warning
    )


# --- links


def test_a_class_that_is_a_link_is_followed(folder, tmp_path):
    (folder / "bee").rename(tmp_path / "elsewhere")
    (folder / "bee").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "image.png").write_bytes((folder / "ant" / "0.png").read_bytes())
    (folder / "ant" / "linked.png").symlink_to(tmp_path / "image.png")
    source = load_source(of_folder(folder))
    assert source.class_names == ("ant", "bee") and len(source.train) + len(source.test) == 9


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_to_a_folder_that_it_lies_in_is_refused(folder, target):
    (folder / "ant" / "loop").symlink_to(target)
    refusal(lambda: load_source(of_folder(folder)), "data.path", "loop", "that it lies in")


@pytest.mark.parametrize("name", ["cat", "ant/gone.png"])
def test_a_link_to_nothing_is_refused(folder, name):
    (folder / name).symlink_to("nowhere")
    refusal(lambda: load_source(of_folder(folder)), "data.path", name, "a link to nothing")


def test_a_folder_that_cannot_be_listed_is_named(folder, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if os.path.basename(path) == "ant":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refusal(lambda: load_source(of_folder(folder)), "data.path", "ant", "permission denied")


# --- what is no class, and no image


@pytest.mark.parametrize(
    "name", ["@eaDir", "__pycache__", "__MACOSX", ".thumbnails", "#recycle", "ant/@eaDir"]
)
def test_leftovers_are_no_classes(folder, name):
    before = read(folder)
    (folder / name).mkdir(exist_ok=True)
    picture(0).save(folder / name / "x.png")
    (folder / "ant" / "Thumbs.db").write_bytes(b"x")
    assert read(folder) == before


@pytest.mark.parametrize("suffix", [".pdf", ".h5", ".dcm", ".eps", ".ps", ".fits", ".mpg", ".psd"])
def test_formats_beyond_the_closed_list_are_no_images(folder, suffix):
    assert suffix not in SUFFIXES
    (folder / "ant" / f"x{suffix}").write_bytes(b"x")
    assert f"skipped 1 {suffix}" in read(folder)


def test_suffixes_in_capitals_count(folder):
    picture(0).save(folder / "ant" / "photo.JPG")
    assert "9 images" in read(folder)


def test_a_folder_of_other_files_says_what_it_holds(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "scan.dcm").write_bytes(b"x")
    refusal(
        lambda: load_source(of_folder(tmp_path)), "holds no images (PNG, JPEG", "skipped 1 .dcm"
    )


def test_folders_too_deep_to_be_looked_at_are_named(folder):
    (folder / "ant" / "b" / "c" / "d" / "e").mkdir(parents=True)
    assert "skipped 1 folder below 5 others" in read(folder)


def test_an_archive_is_no_folder(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK")
    data = of_folder(tmp_path / "images.zip")
    refusal(lambda: load_source(data), "data.path", "is a file: it must be a folder")


def test_a_name_that_is_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    picture(0).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", folder + b"/x.png")
    refusal(lambda: load_source(of_folder(tmp_path)), "is not UTF-8", "rename it")


def test_a_link_to_nothing_that_is_no_image_is_skipped(folder):
    (folder / "notes.txt").symlink_to("/nowhere")
    (folder / "ant" / "more.TXT").symlink_to("/nowhere")
    assert "skipped 2 .txt link to nothing" in read(folder)


def test_what_a_file_is_called_does_nothing_where_it_is_shown(folder):
    for name in (b"a.\x1b[31mred\x07", b"b.\xff", b"c." + b"x" * 200, "d.\u202eabc".encode()):
        with open(os.fsencode(folder) + b"/" + name, "wb"):
            pass
    os.mkdir(os.fsencode(folder) + b"/\xfe\x1b")
    line = read(folder)
    assert line.isprintable() and line.encode() and "x" * 20 not in line
    assert "1 .?[31mred?" in line and "1 .?abc" in line


# --- a single class, and classes that are none


@pytest.mark.parametrize("names", [("n1/images", "n2/images"), ("train/a/x", "train/b/x")])
def test_a_single_class_in_several_domains_is_no_class(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        picture(0).save(tmp_path / name / "0.png")
    for share in (0.2, 0.0):  # a node's, too
        refusal(
            lambda share=share: load_source(of_folder(tmp_path, test_share=share)),
            f"a single class, {names[0].split('/')[-1]!r}",
            "in 2 domains",
            "class/images/image",
        )


def test_a_single_class_in_all_is_refused_unless_it_is_a_nodes(folder):
    (folder / "bee").rename(folder.parent / "bee")
    (folder / "labels.csv").write_text("x")
    refusal(
        lambda: load_source(of_folder(folder)),
        "holds a single class, 'ant' (skipped 1 .csv; labels in tables not read)",
    )
    assert len(load_source(of_folder(folder, test_share=0.0)).train) == 4


def test_labels_in_a_table_are_not_read_and_parts_are_told_of(tmp_path, caplog):
    for name in ("ham_part_1", "ham_part_2"):
        (tmp_path / name).mkdir()
        for row in range(4):
            picture(row).save(tmp_path / name / f"{row}.png")
    load_test_set(of_folder(tmp_path))
    assert not caplog.records
    (tmp_path / "labels.csv").write_text("x")
    assert "labels in tables not read" in load_test_set(of_folder(tmp_path)).read
    (warning,) = caplog.records
    assert "labels in a .csv file are not read" in caplog.text and "'ham_part_1'" in caplog.text
    (tmp_path / "ham_part_1").rename(tmp_path / "nevus")
    assert "tables" not in read(tmp_path)


# --- class/patient/image


def test_a_class_that_only_one_domain_has_is_warned_of(tmp_path, caplog):
    for name in ("benign/anna", "benign/ben", "malign/carl"):
        (tmp_path / name).mkdir(parents=True)
        for row in range(4):
            picture(row).save(tmp_path / name / f"{row}.png")
    test = load_test_set(of_folder(tmp_path))
    words = "3 of 3 classes are in one domain only ('anna', 'ben', 'carl')"
    assert words in test.read
    (warning,) = caplog.records
    assert warning.levelname == "WARNING" and words in caplog.text
    assert "class/patient/image, these are no classes: data.path must" in caplog.text
    caplog.clear()
    for name in ("malign/anna", "malign/ben", "benign/carl"):
        (tmp_path / name).mkdir(parents=True)
        picture(0).save(tmp_path / name / "0.png")
    load_test_set(of_folder(tmp_path))
    assert not caplog.records


def test_a_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert "8 images" in read(f"~/{folder.name}")
    with pytest.raises(DataError, match="data.path = '~nobody-here/x' names a user's home"):
        read("~nobody-here/x")
