"""Folders of uploads that come from somebody else are held to what uploads are."""

import copy
import errno
import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fedmitr_app.errors import ConfigError, RunFolderError, UploadError
from fedmitr_app.models import InputSpec
from fedmitr_app.uploads import (
    ArraySpec,
    ClassMoments,
    Expected,
    Metadata,
    Rejection,
    RoundFolder,
    RoundOutcome,
    read_round,
    read_spool,
    require_compatible,
)
from fedmitr_app.uploads.manifest import manifest_name
from fedmitr_app.uploads.metadata import check_client_key
from fedmitr_app.utils.files import arrays_digest

WEIGHTS = {"head.weight": np.ones((2, 3), np.float32), "n": np.array([3], np.int64)}
REFERENCE = {name: ArraySpec(value.shape, value.dtype) for name, value in WEIGHTS.items()}
FEATURES = np.arange(12.0).reshape(4, 3)
MOMENTS = ClassMoments(
    np.array([4.0, 0.0]),
    np.stack([FEATURES.sum(0), np.zeros(3)]),
    FEATURES.T @ FEATURES,
)
SPEC = InputSpec(8, 1, (0.5,), (0.25,))
many = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def finish_round(folder, clients=("a",)):
    """A run folder whose round is over."""
    made = RoundFolder(folder)
    spool = made.spool()
    for number, client in enumerate(clients):
        arrays = {**WEIGHTS, "n": np.array([number], np.int64)}
        claims = Metadata(4, client, {"depth": 2}, SPEC, (4, 0), {"loss": 0.5})
        spool.add(arrays, claims, MOMENTS, node=12 + number)
    refused = (Rejection("b", "its weights hold NaN", 9),)
    made.finish(RoundOutcome(tuple(spool.settle()), refused, asked=2, collect_seconds=1.5))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finish_round(tmp_path_factory.mktemp("finished"), ("a", "c"))


@pytest.fixture
def strange(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "strange")
    return tmp_path / "strange"


def manifest_of(folder, client="a"):
    (path,) = (folder / "uploads").glob(f"{client}.*.json")
    return path


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["a" * 64, "../../etc/passwd", "x\x1b[2J", "\u202e", 10**400, "9" * 300]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def mutated(draw, original):
    """A JSON table with something in it changed, added or gone."""
    facts = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 2))):
        table = facts
        name = draw(st.sampled_from([*table, "unknown"]))
        while isinstance(table.get(name), dict) and table[name] and draw(st.booleans()):
            table = table[name]
            name = draw(st.sampled_from([*table]))
        if draw(st.booleans()):
            table[name] = draw(values)
        else:
            table.pop(name, None)
    return facts


@many
@given(data=st.data())
def test_any_manifest_is_an_upload_or_one_sentence(finished, tmp_path, data):
    folder = tmp_path / "uploads"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished / "uploads", folder)
    path = manifest_of(tmp_path)
    facts = data.draw(mutated(json.loads(path.read_text())))
    path.write_text(json.dumps(facts))
    refused = []
    uploads = read_spool(folder, refused.append)
    assert len(uploads) + len(refused) == 2 and "c" in [upload.client for upload in uploads]
    for rejection in refused:
        assert rejection.reason.isprintable() and str(path.with_suffix("")) in rejection.reason
    for upload in uploads:
        check_client_key(upload.client)
        assert path.name == manifest_name(upload.client, upload.digest) or upload.client == "c"
        assert upload.num_examples is None or 0 < upload.num_examples < 10**12
        assert all(np.isfinite(value) for value in upload.metrics.values())
        assert upload.label_counts is None or sum(upload.label_counts) == upload.num_examples
        assert isinstance(upload.node, int) and 0 <= upload.node < 2**64
        try:
            require_compatible([upload], REFERENCE, Expected({"depth": 2}, SPEC, 2))
        except ConfigError as error:
            assert str(error).isprintable()


@many
@given(data=st.data())
def test_any_record_of_a_round_is_a_round_or_one_sentence(finished, tmp_path, data):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder)
    facts = data.draw(mutated(json.loads((folder / "round.json").read_text())))
    (folder / "round.json").write_text(json.dumps(facts))
    try:
        outcome = read_round(folder)
    except RunFolderError as error:
        assert str(error).isprintable() and "round.json cannot be read back" in str(error)
        return
    assert isinstance(outcome.sentence(), str) and outcome.reasons().isprintable()
    assert outcome.asked >= 0 and np.isfinite(outcome.collect_seconds)


@many
@given(data=st.data())
def test_any_weights_file_is_an_upload_or_one_sentence(finished, tmp_path, data):
    folder = tmp_path / "uploads"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished / "uploads", folder)
    path = manifest_of(tmp_path).with_suffix(
        data.draw(st.sampled_from([".safetensors", ".moments.safetensors"]))
    )
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    refused = []
    uploads = read_spool(folder, refused.append)
    assert len(uploads) + len(refused) == 2
    for upload in uploads:  # the change was one back, or in what nobody reads
        state = {name: value.numpy() for name, value in upload.load_state().items()}
        assert arrays_digest(state) == upload.digest


def rewrite(folder, arrays, moments=None):
    """Change an upload's arrays, and its manifest and name with them: its digests are right."""
    path = manifest_of(folder)
    facts = json.loads(path.read_text())
    old = path.with_suffix("")
    facts["digest"] = arrays_digest(arrays)
    new = path.with_name(manifest_name("a", facts["digest"]))
    if moments is None:
        moments = load_file(f"{old}.moments.safetensors")
    facts["moments"] = arrays_digest(moments)
    for suffix in (".json", ".safetensors", ".moments.safetensors"):
        os.unlink(f"{old}{suffix}")
    save_file(arrays, new.with_suffix(".safetensors"))
    save_file(moments, new.with_suffix(".moments.safetensors"))
    new.write_text(json.dumps(facts))


SUMS = MOMENTS.arrays()


@pytest.mark.parametrize(
    ("arrays", "moments", "words"),
    [
        ({**WEIGHTS, "x": np.array([np.nan])}, None, "x has values that are NaN or infinite"),
        ({**WEIGHTS, "x": np.array([np.inf], np.float16)}, None, "x has values that are NaN"),
        ({**WEIGHTS, "x": np.array([1j], np.complex64)}, None, "x is of type complex64"),
        (WEIGHTS, {"counts": SUMS["counts"]}, "does not hold class moments|not those"),
        (WEIGHTS, {**SUMS, "more": np.zeros(1)}, "1 unknown to the server"),
        (WEIGHTS, {**SUMS, "scatter": np.full((3, 3), np.nan)}, "NaN or infinite"),
        (WEIGHTS, {**SUMS, "scatter": -SUMS["scatter"]}, "a scatter that no images can have"),
        (WEIGHTS, {**SUMS, "counts": np.array([9.0, 0.0])}, "count 9 images but num-examples = 4"),
        (WEIGHTS, {**SUMS, "sums": np.zeros((5, 3))}, "sums has shape"),
    ],
)
def test_a_digest_only_proves_that_files_belong_together(strange, arrays, moments, words):
    rewrite(strange, arrays, moments)
    with pytest.raises(UploadError, match=words):
        read_spool(strange / "uploads")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"head.weight": WEIGHTS["head.weight"]}, "1 missing"),
        ({**WEIGHTS, "n": np.array([3.0], np.float32)}, "n is float32 where the server has int64"),
        ({**WEIGHTS, "n": np.zeros(2, np.int64)}, "n has shape"),
    ],
)
def test_an_upload_of_another_model_is_refused(strange, arrays, words):
    rewrite(strange, arrays)
    (upload,) = [each for each in read_spool(strange / "uploads") if each.client == "a"]
    with pytest.raises(ConfigError, match=words):
        require_compatible([upload], REFERENCE, Expected())
    # In a round that was stopped too: the mistake may be the server's, and nobody's work is lost.
    with pytest.raises(ConfigError, match=words):
        RoundFolder(strange, resume=True).spool(REFERENCE, Expected())
    assert len(list((strange / "uploads").iterdir())) == 6


def test_what_cannot_be_read_now_ends_the_resume_and_not_the_uploads(strange, monkeypatch):
    """Too many open files, a network's file system that fails: each upload may be whole."""

    def fails(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    (strange / "rejected" / "1.json").write_text("{}")
    before = sorted(strange.rglob("*"))
    with monkeypatch.context() as patch, pytest.raises(RunFolderError) as raised:
        patch.setattr("fedmitr_app.uploads.manifest.open_tensors", fails)
        RoundFolder(strange, resume=True).spool(REFERENCE, Expected())
    assert ".safetensors cannot be read back: input/output error. No upload" in str(raised.value)
    assert sorted(strange.rglob("*")) == before
    assert sorted(RoundFolder(strange, resume=True).spool(REFERENCE).here) == ["a", "c"]


def test_damaged_uploads_are_put_aside_and_asked_for_again(strange, caplog):
    weights = manifest_of(strange).with_suffix(".safetensors")
    weights.write_bytes(damaged := weights.read_bytes()[:-1])
    manifest_of(strange, "c").rename(strange / "uploads" / "1.json")  # a reason's name
    for _ in range(2):  # what was put aside stays there when the round is gone on with again
        spool = RoundFolder(strange, resume=True).spool(REFERENCE, Expected())
        assert not spool.here
    assert "Whoever sent it is asked again; its files are kept in" in caplog.text
    aside = {path.name: path.read_bytes() for path in (strange / "rejected").iterdir()}
    assert aside[f"{weights.name}.aside"] == damaged and len(aside) == 4
    assert json.loads(aside["1.json.aside"])["client"] == "c"


@pytest.mark.parametrize("what", ["link", "pipe", "folder"])
@pytest.mark.parametrize("file", ["weights", "manifest", "moments", "round", "uploads"])
def test_links_pipes_and_folders_are_refused(strange, tmp_path, file, what):
    manifest = manifest_of(strange)
    path = {
        "weights": manifest.with_suffix(".safetensors"),
        "manifest": manifest,
        "moments": manifest.with_suffix(".moments.safetensors"),
        "round": strange / "round.json",
        "uploads": strange / "uploads",
    }[file]
    moved = path.rename(tmp_path / "elsewhere")
    if what == "link":
        path.symlink_to(moved)
    elif what == "pipe":
        os.mkfifo(path)
    elif file != "uploads":
        path.mkdir()
    else:  # a folder is what it should be, and what is in it is not
        path.mkdir()
        path = path / "a.json"
        path.mkdir()
    (tmp_path / "new").mkdir()
    with pytest.raises(ConfigError, match=rf"{path.name} can't be used: it is a {what} and no"):
        RoundFolder(tmp_path / "new", uploads_from=strange).earlier()
    assert not list((tmp_path / "new").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("place", "words"),
    [("rejected/1.json", "cannot be removed: "), ("uploads/x.json", "cannot be read back: it ")],
)
def test_a_folder_where_a_file_is_to_go_is_one_sentence(strange, place, words):
    (strange / place).mkdir(parents=True)
    with pytest.raises(RunFolderError, match=f"{place} {words}"):
        RoundFolder(strange, resume=True).spool()


def test_names_in_a_folder_lead_nowhere_else(strange, tmp_path):
    """Whatever a manifest says of itself, its files are those beside it."""
    path = manifest_of(strange)
    facts = json.loads(path.read_text())
    for client in ("../../a", "/etc/passwd", "c"):
        path.write_text(json.dumps({**facts, "client": client}))
        with pytest.raises(UploadError, match="its name is that of another upload"):
            read_spool(strange / "uploads")


def test_another_runs_uploads_are_ones_own_once_they_are_taken(strange, tmp_path, monkeypatch):
    """Who owns the files could change them later: they are copied."""
    (tmp_path / "new").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    taken = RoundFolder(tmp_path / "new", uploads_from=strange).earlier()
    assert [upload.client for upload in taken.accepted] == ["a", "c"]
    for upload in taken.accepted:
        assert upload.weights.stat().st_nlink == 1
        assert upload.weights.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new" / "uploads").stat().st_mode & 0o777 == 0o700


def test_what_else_lies_in_the_folder_is_left_there(strange, tmp_path):
    (strange / "uploads" / "@eaDir").mkdir()
    (strange / "uploads" / ".DS_Store").write_text("x")
    (tmp_path / "new").mkdir()
    taken = RoundFolder(tmp_path / "new", uploads_from=strange).earlier()
    assert len(taken.accepted) == 2 and len(list((tmp_path / "new" / "uploads").iterdir())) == 6


def test_a_round_is_read_back_as_it_was(finished):
    outcome = read_round(finished)
    assert outcome.rejected == (Rejection("b", "its weights hold NaN", 9),)
    assert (outcome.asked, outcome.collect_seconds) == (2, 1.5)
    assert [(upload.client, upload.node) for upload in outcome.accepted] == [("a", 12), ("c", 13)]
