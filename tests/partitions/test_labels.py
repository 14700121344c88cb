"""Labels as indices: equal to a slow oracle, whatever they are, and small in memory."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmitr_app.errors import ConfigError
from fedmitr_app.partitions.labels import encode
from fedmitr_app.partitions.names import clean_name, join_names, split_names
from fedmitr_app.partitions.sources import load_source

from .conftest import class_features, encoded, picture, write_parquet
from .test_sources import of_folder, of_parquet, refusal

WORDS = st.text("abcé\u0301 \t", min_size=1, max_size=6).filter(lambda word: word.strip())


def oracle(labels: list) -> tuple[list[int], list[str]]:
    """Row by row, as one would with a dictionary."""
    if isinstance(labels[0], str):
        names = sorted({clean_name(label) for label in labels})
        return [names.index(clean_name(label)) for label in labels], names
    values = sorted(set(labels))
    return [values.index(label) for label in labels], [str(value) for value in values]


@given(
    st.one_of(
        st.lists(WORDS, min_size=1, max_size=30),
        st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=30),
        st.lists(st.booleans(), min_size=1, max_size=30),
    ),
    st.integers(1, 4),
)
def test_labels_are_what_a_dictionary_makes_of_them(labels, parts):
    codes, names = oracle(labels)
    array = pa.array(labels)
    step = -(-len(labels) // parts)
    chunks = [array[start : start + step] for start in range(0, len(labels), step)]
    dictionaries = pa.chunked_array([chunk.dictionary_encode() for chunk in chunks])
    for column in (labels, array, pa.chunked_array(chunks), dictionaries):
        found = encode(column, "data.label-column")
        assert (found.codes.tolist(), list(found.names)) == (codes, names)
        assert found.codes.dtype == np.int64


@given(st.lists(st.integers(0, 3), min_size=1))
def test_numbers_that_stand_for_names(labels):
    found = encode(labels, "data.label-column", ["d", "c ", "b", "a"])
    assert found.names == ("d", "c", "b", "a") and found.codes.tolist() == labels


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_long_label_takes_no_memory_and_is_refused(tmp_path, share):
    """On one row, or on all of them: as text of one width these labels are 0.8 GB."""
    rows = 50_000
    which = np.full(rows, share == 1.0, dtype=np.int32)
    which[0] = 1
    labels = pa.DictionaryArray.from_arrays(which, ["y", "x" * 4000])
    table = pa.table({"img": pa.nulls(rows, pa.binary()), "label": labels})
    pq.write_table(table, tmp_path / "a.parquet", store_schema=False)  # so read back as text
    before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    try:
        refusal(
            lambda: load_source(of_parquet(tmp_path / "a.parquet")),
            "data.label-column",
            "4000 letters",
            "1 to 200 letters",
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6 and pa.default_memory_pool().max_memory() < before + 50e6


def test_a_file_that_claims_rows_without_end(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", [0, 1] * 5)
    monkeypatch.setattr("fedmitr_app.partitions.parquet.MOST_ROWS", 9)
    refusal(lambda: load_source(of_parquet(tmp_path)), "data.path", "claims to hold 10 rows")


def test_an_id_is_no_class(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [f"patient {row}" for row in range(120)])
    refusal(
        lambda: load_source(of_parquet(path)),
        "120 images in 120 classes",
        "is data.label-column an id",
    )
    # Few-shot images of few classes are.
    path = write_parquet(tmp_path / "b.parquet", list("abc"))
    assert load_source(of_parquet(path)).class_names == ("a", "b", "c")


# --- unlabelled


def test_a_dictionary_may_hold_the_missing_label():
    missing = pa.DictionaryArray.from_arrays([0, 1], pa.array(["a", None]))
    refusal(lambda: encode(missing, "data.label-column"), "rows without any")


def test_truths_may_stand_for_names():
    found = encode([True, False], "data.label-column", ["no", "yes"])
    assert found.codes.tolist() == [1, 0] and found.codes.dtype == np.int64


@pytest.mark.parametrize("features", [None, class_features()])
def test_minus_one_is_unlabelled(tmp_path, features):
    path = write_parquet(tmp_path / "a.parquet", [0, 1, -1, 2], features=features)
    refusal(
        lambda: load_source(of_parquet(path)),
        "data.label-column holds -1",
        "unlabelled",
        "as words",
    )


@pytest.mark.parametrize("labels", [[-1, -1], [None, None]])
def test_a_test_split_without_labels(tmp_path, labels):
    write_parquet(tmp_path / "train.parquet", [0, 1, 2], features=class_features())
    write_parquet(tmp_path / "test.parquet", labels, features=class_features())
    refusal(
        lambda: load_source(of_parquet(tmp_path)),
        "the test set of data.path",
        "data.label-column",
    )


def test_a_test_split_without_a_label_column(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1, 2])
    pq.write_table(pa.table({"img": [encoded(0)]}), tmp_path / "test.parquet")
    refusal(
        lambda: load_source(of_parquet(tmp_path)),
        "data.label-column = 'label'",
        "a column of the test set of data.path",
        "'img'",
        kind=ConfigError,
    )


# --- names


@pytest.mark.parametrize("name", ["caf\u00e9", "cafe\u0301", "cafe\u0301 ", " caf\u00e9\t"])
def test_what_looks_alike_is_one_class(tmp_path, name):
    path = write_parquet(tmp_path / "a.parquet", [name, "caf\u00e9", "tea"])
    source = load_source(of_parquet(path))
    assert source.class_names == ("caf\u00e9", "tea")


def test_folders_that_look_alike_are_one_class(folder):
    (folder / "ant").rename(folder / "cafe\u0301")
    (folder / "bee").rename(folder / "caf\u00e9 ")
    (folder / "tea").mkdir()
    picture(0).save(folder / "tea" / "0.png")
    assert load_source(of_folder(folder)).class_names == ("caf\u00e9", "tea")


def test_two_declared_classes_of_one_name_are_refused(tmp_path):
    refusal(lambda: encode([0], "data.label-column", ["a", "a "]), "two classes of one name")


@pytest.mark.parametrize("name", ["", "  ", "a\x1bb", "a\x00", "x" * 201])
def test_names_that_can_be_none(name):
    refusal(lambda: encode([name, "b"], "data.label-column"), "data.label-column", "letters")


@given(st.lists(st.text("ab,\"' é", min_size=1), max_size=4))
def test_names_with_commas_go_through_a_setting(names):
    clean = tuple(filter(None, map(clean_name, names)))
    assert split_names("server.classes", join_names(clean)) == clean


def test_names_in_a_setting():
    assert split_names("server.classes", 'a "b" c') == ('a "b" c',)
    assert split_names("server.classes", 'a, "b, c",,d ') == ("a", "b, c", "d")
    assert split_names("server.classes", "") == ()
    for text in ('"a', '"a"b'):
        with pytest.raises(ConfigError, match=r'server.classes = .* in "double quotes"'):
            split_names("server.classes", text)
