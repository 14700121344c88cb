"""Files that others may have written or put in the way: nothing is followed, awaited, believed."""

import json
import os
import stat
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fedmitr_app.errors import RunFolderError
from fedmitr_app.utils.files import (
    append_text,
    load_tensors,
    save_tensors,
    write_atomically,
    write_text,
)
from fedmitr_app.utils.reading import (
    MAX_DEPTH,
    open_tensors,
    parse_json,
    read_json,
    read_table,
    read_text,
)
from fedmitr_app.utils.text import harmless, no_formula


def read_tensors(path):
    with open_tensors(path) as file:
        return file.keys()


PLACES = ["link", "dangling link", "pipe", "device", "folder", "nothing"]


def put(what, path):
    """Put something that is no ordinary file at a path."""
    victim = path.with_name("victim")
    if what == "link":
        victim.write_text("{}")
        path.symlink_to(victim)
    elif what == "dangling link":
        path.symlink_to(victim)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()


@pytest.mark.parametrize("what", PLACES)
@pytest.mark.parametrize("read", [read_text, read_json, read_tensors])
def test_only_ordinary_files_are_read(what, read, tmp_path):
    path = tmp_path / "file"
    put(what, path)
    with pytest.raises(OSError, match="and no ordinary file|No such file"):
        read(path)


def test_a_file_of_any_length_is_not_taken_in(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(2**40)  # of nothing
    with pytest.raises(ValueError, match="longer than 1048576 bytes"):
        read_text(path)
    with path.open("r+b") as file:
        file.write((2**24 + 1).to_bytes(8, "little"))
    with pytest.raises(ValueError, match="header is longer"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting"),
        ("NaN", "NaN, which is no number"),
        ('{"a": -Infinity}', "-Infinity"),
        ("[1e999]", "not finite"),
        ("[-1e999]", "not finite"),
        (str(2**64), "beyond 64 bits"),
        ("[" + "9" * 5000 + "]", "limit"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "too deeply"),
        ("[" * 100_000, "too deeply"),
        ('{"a":' * 100_000, "too deeply"),
    ],
)
def test_json_that_no_file_of_ours_holds_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_json(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.floats(-1e300, 1e300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_json_of_ours_is_read_back(value):
    try:
        assert parse_json(json.dumps(value)) == value
    except ValueError as error:
        assert "too deeply" in str(error)


@given(st.binary(max_size=200))
def test_whatever_a_file_holds_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    for read in (read_text, read_json, read_table, load_tensors):
        try:
            read(path)
        except (ValueError, RunFolderError):
            pass


def test_a_table_is_one(tmp_path):
    (tmp_path / "list").write_text("[]")
    with pytest.raises(ValueError, match="no table"):
        read_table(tmp_path / "list")


def test_tensors_are_read_as_they_were_written_and_no_others(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.arange(3)}, {"steps": [1, None]}, private=True)
    assert load_tensors(path).facts == {"steps": [1, None]}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    damaged = {"facts": "[]", "digest": "x"}, {"facts": "{", "digest": ""}
    for header in ({}, {"facts": "{}"}, *damaged):
        save_file({"a": np.zeros(2)}, path, metadata=header or None)
        with pytest.raises(RunFolderError, match="cannot be read back"):
            load_tensors(path)
    path.write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="header"):
        read_tensors(path)


def test_a_device_is_not_even_opened():
    with pytest.raises(OSError, match="it is a device"):
        read_text(Path("/dev/zero"))


@pytest.mark.parametrize("what", PLACES)
def test_what_stands_in_a_files_place_is_replaced_and_not_written_to(what, tmp_path):
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    put(what, path)
    if what == "folder":
        with pytest.raises(RunFolderError, match="cannot be written: is a directory"):
            write_text(path, "new")
    else:
        write_text(path, "new")
        assert not path.is_symlink() and path.read_text() == "new"
    victim = path.with_name("victim")
    assert not victim.exists() or victim.read_text() == "{}"
    assert all(not name.name.startswith(".") for name in path.parent.iterdir())


def test_a_file_is_written_where_nobody_else_can_have_put_a_link(tmp_path):
    seen = {}

    def write(partial):
        folder = partial.parent
        seen["mode"] = stat.S_IMODE(folder.stat().st_mode)
        seen["beside"] = folder.parent == tmp_path and [*folder.iterdir()] == [partial]
        partial.unlink()  # as safetensors does
        partial.write_text("new")

    write_atomically(tmp_path / "file", write)
    assert seen == {"mode": 0o700, "beside": True}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o640)])
def test_who_may_read_a_file(tmp_path, private, mode):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", lambda partial: partial.write_text("x"), private)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@pytest.mark.parametrize("what", ["link", "dangling link", "pipe", "device", "folder", "hard link"])
def test_nothing_is_appended_through_a_link(what, tmp_path):
    path = tmp_path / "file"
    if what == "hard link":
        (tmp_path / "victim").write_text("{}")
        path.hardlink_to(tmp_path / "victim")
    put(what, path)
    with pytest.raises(RunFolderError, match="file cannot be written"):
        append_text(path, "line\n")
    victim = tmp_path / "victim"
    assert not victim.exists() or victim.read_text() == "{}"


def test_lines_are_appended(tmp_path):
    for line in ("one\n", "zw\u00f6lf\ud800\n"):
        append_text(tmp_path / "file", line)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "one\nzw\u00f6lf?\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\n\tc\x85d\u2028e\u2029f", "a b c d e f"),
        ("\x1b[2J\x07\x7f\x9b31m", "?[2J???31m"),
        ("a\u202eb\u2066c\u200bd\ufeffe\u00adf", "a?b?c?d?e?f"),
        ("\ud800", "?"),
        ("Spital Z\u00fcrich \u75c5\u9662", "Spital Z\u00fcrich \u75c5\u9662"),
        ("x" * 600, "x" * 499 + "\u2026"),
        (" " * 10**6 + "x", "\u2026"),
        (None, "None"),
    ],
)
def test_what_strangers_wrote_does_nothing_but_be_read(text, shown):
    assert harmless(text) == shown


@given(st.text(st.characters()), st.integers(2, 50))
def test_any_text_is_one_printable_line_of_bounded_length(text, longest):
    shown = harmless(text, longest)
    assert shown.isprintable() and len(shown) <= longest
    assert harmless(shown, longest) == shown
    shown.encode("utf-8")
    cell = no_formula(shown)
    assert cell[:1] not in tuple("=+-@\t\r") and cell.removeprefix("'").lstrip() in shown


@given(st.text(string.ascii_letters + "äöü病院-_ ", max_size=100).map(str.strip))
def test_ordinary_text_stays_as_it_is(text):
    assert harmless(text) == " ".join(text.split())
