"""Files of strangers: they cost a sentence at most, and lead nowhere."""

import io
import os
import struct
import uuid
import zlib
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Value
from datasets import Image as Picture
from PIL import Image, ImageFile

from fedmitr_app.config import DataConfig, PartitionConfig
from fedmitr_app.errors import DataError
from fedmitr_app.partitions import images, load_shard, load_test_set
from fedmitr_app.partitions.images import decode_all, to_pixels
from fedmitr_app.partitions.sources import load_source

from .conftest import NAMES, encoded, picture, write_parquet
from .test_sources import IID, of_folder, of_parquet, refusal


def saved(image: Image.Image, kind: str = "PNG", **how) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def decode(*cells, **how):
    return decode_all(cells, len(cells), size=4, channels=3, where="data.path = 'x'", **how)


# --- EXIF


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_noted_turn_is_undone(turn, kind):
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:4, :4] = 250  # a bright corner at the top left
    exif = Image.Exif()
    exif[0x0112] = turn
    found = to_pixels(saved(Image.fromarray(pixels), kind, exif=exif), 8, 1)[0]
    bright = {(row, column) for row in (1, 6) for column in (1, 6) if found[row, column] > 200}
    assert bright == {[(1, 1), (1, 6), (6, 6), (6, 1)][(turn - 1) % 4]}


BROKEN_EXIF = [
    b"Exif\0\0",
    b"Exif\0\0garbage",
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 20,
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    # A turn that is a fraction by nought.
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\x1a\0\0\0\0" + b"\0" * 8,
]


@pytest.mark.parametrize("exif", BROKEN_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_beside_good_pixels_is_no_failure(exif, kind):
    found = decode(saved(picture(200), kind, exif=exif))
    assert abs(int(found[0, 0, 0, 0]) - 200) < 8


@pytest.mark.parametrize("error", [struct.error, ZeroDivisionError, SyntaxError, IndexError])
def test_whatever_exif_raises(monkeypatch, error):
    def fail(self):
        raise error("broken")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert decode(encoded(7))[0, 0, 0, 0] == 7


# --- decoding


@pytest.mark.parametrize(
    "error",
    [struct.error, IndexError, zlib.error, MemoryError, EOFError, Image.DecompressionBombError],
)
def test_whatever_a_decoder_raises_names_the_file(folder, monkeypatch, error):
    def fail(self):
        raise error("broken")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    refusal(
        lambda: load_test_set(of_folder(folder)),
        str(folder),
        ".png",
        "not a readable 8-bit image",
        error.__name__,
    )


def test_fuzzed_images_end_in_pixels_or_in_a_sentence():
    draws = np.random.default_rng(0)
    noise = Image.fromarray(draws.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    refused = 0
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        good = np.frombuffer(saved(noise, kind), np.uint8)
        for _ in range(60):
            bad = good.copy()
            where = draws.integers(0, len(bad), draws.integers(1, 6))
            bad[where] = draws.integers(0, 256, len(where))
            cut = draws.integers(1, len(bad) + 1) if draws.random() < 0.3 else len(bad)
            try:
                assert decode(bad[:cut].tobytes()).shape == (1, 3, 4, 4)
            except DataError as error:
                refused += 1
                assert "\n" not in str(error)
    assert 50 < refused < 400


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PCX", "TGA", "ICO", "SGI", "IM"])
def test_formats_are_a_closed_list(kind):
    with pytest.raises(DataError, match="none of PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM"):
        decode(saved(picture(0), kind))


def test_a_bomb_is_not_expanded(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("expanded"))
    bomb = bytearray(saved(picture(0)))
    bomb[16:24] = struct.pack(">II", 10_000, 9_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    with pytest.raises(DataError, match=f"10000 x 9000 pixels, more than {images.MOST_PIXELS}"):
        decode(bytes(bomb))


# --- transparency: drawings are made for a white ground


def clear(mode: str, ink: int = 0) -> Image.Image:
    """A drawing: ink on the left half, nothing on the right."""
    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawing.paste((ink, ink, ink, 255), (0, 0, 4, 8))
    if mode == "P":
        flat = Image.new("P", (8, 8), 1)
        flat.putpalette([ink] * 3 + [0, 0, 0])
        flat.paste(0, (0, 0, 4, 8))
        flat.info["transparency"] = 1
        return flat
    if mode in ("L", "RGB"):  # one colour stands for nothing
        flat = Image.new(mode, (8, 8), 9 if mode == "L" else (9, 9, 9))
        flat.paste(ink if mode == "L" else (ink,) * 3, (0, 0, 4, 8))
        flat.info["transparency"] = 9 if mode == "L" else (9, 9, 9)
        return flat
    return drawing.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_is_white(mode, channels):
    drawing = clear(mode, ink=50)
    how = {"transparency": drawing.info["transparency"]} if drawing.info else {}
    for cell in (drawing, saved(drawing, **how)):
        found = to_pixels(cell, 8, channels)
        assert (found[:, :, 0] == 50).all() and (found[:, :, 7] == 255).all()


def test_half_transparent_ink_is_blended():
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 51))
    assert (to_pixels(image, 4, 1) == 204).all()


# --- parquet: what isn't used is not touched, and cells lead nowhere


def strange_columns(rows: int) -> dict:
    return {
        "map": pa.array([[("k", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
        "uuid": pa.array([uuid.uuid4().bytes] * rows, pa.uuid()),
        "fixed": pa.array([b"1234"] * rows, pa.binary(4)),
        "domain": pa.nulls(rows, pa.string()),
        "when": pa.array([0] * rows, pa.duration("ns")),
    }


def test_columns_that_are_not_used_are_never_touched(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", [0, 1] * 5, **strange_columns(10))
    touched = []
    for name in ("read", "iter_batches"):
        plain = getattr(pq.ParquetFile, name)

        def spy(self, *args, columns=None, plain=plain, **kwargs):
            touched.append(tuple(columns))
            return plain(self, *args, columns=columns, **kwargs)

        monkeypatch.setattr(pq.ParquetFile, name, spy)
    assert len(load_shard(of_parquet(path), IID, 0, 1, 0)) == 8
    assert set(touched) == {("label",), ("img",)}
    natural = PartitionConfig(kind="natural")
    refusal(
        lambda: load_shard(of_parquet(path), natural, 0, 1, 0),
        "data.domain-column",
        "10 rows without any",
    )


def test_a_label_column_of_images_is_not_read(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", [0, 1])
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("read"))
    data = of_parquet(path, label_column="img")
    refusal(lambda: load_source(data), "data.label-column", "struct")


def test_what_hugging_face_wrote_is_read_for_the_columns_used_alone(tmp_path):
    cells = [{"bytes": encoded(row), "path": None} for row in range(3)]
    written = (
        '{"info": {"features": {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}, '
        '"picture": {"_type": "Image"}, "x": {"_type": "SomethingOfNextYear", "deep": [[]]}}}}'
    )
    table = pa.table({"x": ["?"] * 3, "picture": cells, "label": [2, 0, 1]})
    table = table.replace_schema_metadata({"huggingface": written})
    pq.write_table(table, tmp_path / "a.parquet")
    assert load_source(of_parquet(tmp_path)).class_names == tuple(NAMES)
    assert len(load_test_set(of_parquet(tmp_path))) == 1
    for broken in ("{", "[]", '{"info": 3}'):
        table = table.replace_schema_metadata({"huggingface": broken})
        pq.write_table(table, tmp_path / "a.parquet")
        if broken == "{":
            refusal(lambda: load_source(of_parquet(tmp_path)), "a.parquet", "can't be read")
        else:
            assert load_source(of_parquet(tmp_path)).class_names == ("0", "1", "2")


def test_files_that_number_their_classes_differently_are_refused(tmp_path):
    for name, classes in (("a", ["x", "y"]), ("b", ["y", "x"])):
        features = Features({"img": Picture(), "label": ClassLabel(names=classes)})
        write_parquet(tmp_path / f"{name}.parquet", [0, 1], features=features)
    refusal(lambda: load_source(of_parquet(tmp_path)), "b.parquet", "numbers its classes")


def test_files_with_labels_of_different_types_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", [0, 1])
    write_parquet(tmp_path / "b.parquet", ["0", "1"])
    refusal(lambda: load_source(of_parquet(tmp_path)), "'label' is of one type in some files")


def test_labels_may_be_of_several_widths_and_kinds_of_text(tmp_path):
    pa_version = int(pa.__version__.partition(".")[0])
    kinds = {
        "number": ([0, 1], pa.int64(), pa.int32(), pa.uint8()),
        "word": (
            ["a", "b"],
            pa.string(),
            pa.large_string(),
            *([pa.string_view()] if pa_version >= 20 else []),  # before, no file holds them
            pa.dictionary(pa.int8(), pa.string()),
        ),
    }
    for name, (values, *types) in kinds.items():
        (tmp_path / name).mkdir()
        for number, kind in enumerate(types):
            labels = pa.array(values * 2, kind)
            write_parquet(tmp_path / name / f"{number}.parquet", labels)
        source = load_source(replace(of_parquet(tmp_path / name), test_share=0.0))
        assert source.class_names == tuple(map(str, values))
        assert source.train.labels.tolist() == [0, 1] * 2 * len(types)


def test_one_large_cell_that_is_repeated_takes_no_memory(tmp_path):
    """A file of some hundred bytes: its row group as a whole would be 400 MB."""
    image = encoded(77) + bytes(2_000_000)
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), [image])
    table = pa.table({"img": cells, "label": [0, 1] * 100})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 3000
    rows = load_source(of_parquet(path)).train.take(np.array([0, 100]))
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    assert (rows.pixels(4, 3)[:, 0] == 77).all()
    assert pool.max_memory() < 100e6 + before


def test_rows_are_those_asked_for_across_batches_and_row_groups(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", [0, 1] * 20)
    monkeypatch.setattr("fedmitr_app.partitions.parquet.ROWS_AT_ONCE", 3)
    train = load_source(replace(of_parquet(path), test_share=0.0)).train
    for wanted in ([0], [39], [2, 3, 4, 11], list(range(40))):
        assert train.take(np.array(wanted)).pixels(4, 3)[:, 0, 0, 0].tolist() == wanted


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}, {}, b"", ""])
def test_a_row_without_an_image_is_called_so(cell):
    with pytest.raises(DataError, match="image 2 of 2 .*no image in this row"):
        decode(encoded(1), cell)


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(66))
    (folder / "inside.png").write_bytes(encoded(77))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "fifo.png")
    return folder


@pytest.mark.parametrize("kind", ["text", "struct"])
@pytest.mark.parametrize(
    "path", ["../secret.png", "{outside}/secret.png", "link.png", "/dev/zero", "fifo.png", "."]
)
def test_paths_in_cells_lead_nowhere_else(tmp_path, outside, kind, path):
    path = path.format(outside=tmp_path)
    cells = {"text": [path] * 2, "struct": [{"bytes": None, "path": path}] * 2}[kind]
    pq.write_table(pa.table({"img": cells, "label": [0, 1]}), outside / "a.parquet")
    refusal(lambda: load_test_set(of_parquet(outside)), "not a readable", "ValueError: a path")


def test_a_hub_dataset_may_not_name_files_of_this_machine(tmp_path, monkeypatch):
    cache, folder = tmp_path / "cache", tmp_path / "set"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    data = DataConfig(source="hub", name=str(folder), image_size=12, channels=3)
    for made in (cache, folder):
        made.mkdir()
    for name, shade in (("cache/unpacked.png", 77), ("secret.png", None)):
        (tmp_path / name).write_bytes(encoded(77))
        cells = [{"bytes": None, "path": str(tmp_path / name)}] * 2
        features = Features({"img": Picture(), "label": Value("int64")})
        table = pa.table({"img": cells, "label": [0, 1]}).cast(features.arrow_schema)
        pq.write_table(table, folder / "a.parquet")
        if shade is None:
            refusal(lambda: load_test_set(data), "not a readable", "ValueError: a path")
        else:
            assert (load_test_set(data).images[:, 0] == shade).all()


def test_paths_in_cells_may_lead_into_the_folder(outside):
    for path in ("inside.png", str(outside / "inside.png")):
        pq.write_table(pa.table({"img": [path] * 2, "label": [0, 1]}), outside / "a.parquet")
        assert (load_test_set(of_parquet(outside)).images[:, 0] == 77).all()


def test_a_missing_file_is_called_missing(outside):
    pq.write_table(pa.table({"img": ["gone.png"] * 2, "label": [0, 1]}), outside / "a.parquet")
    refusal(lambda: load_test_set(of_parquet(outside)), "'gone.png' does not exist")
    source = load_source(of_parquet(outside))
    (outside / "a.parquet").unlink()
    refusal(lambda: source.test.pixels(4, 3), "a.parquet' does not exist")


def test_damaged_row_groups_are_one_sentence(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [0, 1] * 20)
    source = load_source(of_parquet(path))
    damaged = bytearray(path.read_bytes())
    damaged[4:2000] = bytes(1996)
    path.write_bytes(damaged)
    refusal(lambda: source.train.pixels(4, 3), "a.parquet' can't be read")
