"""The spool: manifests, file names, integrity, and claims of one key."""

import itertools
import json
import string

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from fedmitr_app.errors import RunFolderError, UploadError
from fedmitr_app.models import InputSpec
from fedmitr_app.uploads import Metadata, Spool, Upload, read_spool
from fedmitr_app.uploads.manifest import safe_name
from fedmitr_app.uploads.metadata import check_metadata

WEIGHTS = {"a": np.arange(4, dtype=np.float32).reshape(2, 2), "b": np.array(1.0, np.float32)}
keys = st.text(min_size=1, max_size=30).filter(
    lambda key: key.isprintable() and key.strip() == key and not set(",#") & set(key)
)
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def full(value):
    return {"a": np.full((2, 2), value, np.float32), "b": np.array(1.0, np.float32)}


def fresh(tmp_path):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    return Spool(folder / "uploads", folder / "rejected")


@quick
@given(
    key=keys,
    examples=st.integers(1, 10**12 - 1),
    metrics=st.dictionaries(
        st.text(min_size=1, max_size=10).filter(str.isprintable),
        st.floats(-1e30, 1e30),
        max_size=5,
    ),
)
def test_what_is_spooled_is_read_back(tmp_path, key, examples, metrics):
    spool = fresh(tmp_path)
    claims, _ = check_metadata(
        Metadata(
            examples,
            key,
            {"depth": 2},
            InputSpec(8, 1, (0.5,), (0.25,)),
            [examples, 0],
            metrics,
        )
    )
    assert spool.add(WEIGHTS, claims) == key
    (upload,) = read_spool(spool.uploads)
    assert (upload.client, upload.num_examples, upload.metrics) == (key, examples, metrics)
    assert upload.label_counts == (examples, 0) and upload.architecture == {"depth": 2}
    assert upload.input_spec == InputSpec(8, 1, (0.5,), (0.25,))
    state = upload.load_state()
    assert torch.equal(state["a"], torch.from_numpy(WEIGHTS["a"])) and state["b"].shape == ()
    assert {path.parent for path in spool.uploads.rglob("*")} == {spool.uploads}


@quick
@given(st.lists(keys, min_size=2, max_size=8, unique=True))
def test_different_keys_have_different_harmless_names(many):
    names = [safe_name(key) for key in many]
    assert len({name.lower() for name in names}) == len(many)
    allowed = set(string.ascii_lowercase + string.digits + "_-~")
    assert all(name and set(name) <= allowed for name in names)


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "a/b", "C:\\x", ".", "..", "~", "A", "a" * 200]
)
def test_hostile_keys_stay_in_the_folder(key, tmp_path):
    spool = fresh(tmp_path)
    spool.add(WEIGHTS, Metadata(1, key))
    assert len(list(spool.uploads.glob("*.json"))) == 1
    assert [upload.client for upload in read_spool(spool.uploads)] == [key]


def test_uploads_are_sorted_and_keyless_ones_are_named_by_their_weights(tmp_path):
    spool = fresh(tmp_path)
    spool.add(full(1), Metadata(1, "zoe"))
    name = spool.add(WEIGHTS, Metadata(1))
    spool.add(full(2), Metadata(1, "Adam"))
    assert [upload.client for upload in read_spool(spool.uploads)] == ["Adam", name, "zoe"]
    assert name.startswith("weights-") and len(name) == 20
    other = fresh(tmp_path)
    assert other.add(dict(reversed(WEIGHTS.items())), Metadata(7)) == name


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_nobody_loses_its_place_to_who_claims_its_key(order, tmp_path, caplog):
    claims = [(full(value), Metadata(5, "same")) for value in range(3)]

    def settle(order):
        spool = fresh(tmp_path)
        for turn in order:
            spool.add(*claims[turn])
        assert not spool.rejections
        return [(upload.client, upload.digest) for upload in spool.settle()]

    assert settle(order) == settle(range(3))
    assert [client for client, _ in settle(order)] == [
        f"same#{digest[:8]}" for _, digest in settle(order)
    ]
    assert len({digest for _, digest in settle(order)}) == 3
    assert "3 uploads claim the client key 'same': all are kept." in caplog.text


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_copy_under_another_key_counts_once(order, tmp_path):
    claims = [("b", 1.0), ("c", 1.0), ("a", 2.0), ("d", 1.0)]
    spool = fresh(tmp_path)
    for turn in order:
        key, value = claims[turn]
        spool.add(full(value), Metadata(5, key))
    assert [upload.client for upload in spool.settle()] == ["a", "b"]
    assert [(r.client, r.reason) for r in spool.rejections] == [
        (key, "its weights are those of 'b' to the last bit, and count once.") for key in "cd"
    ]
    # Read again, as a resumed run does, nothing is left of the copies.
    assert [upload.client for upload in read_spool(spool.uploads)] == ["a", "b"]
    assert len(list(spool.uploads.iterdir())) == 4


@pytest.mark.parametrize("order", [(3, 500), (500, 3)])
def test_repeating_an_upload_with_more_examples_gains_nothing(order, tmp_path):
    spool = fresh(tmp_path)
    for examples in order:
        spool.add(WEIGHTS, Metadata(examples, "same"))
    (kept,) = spool.settle()
    assert kept.num_examples == 3 and spool.repeated == 1


def test_a_repetition_is_dropped_without_a_reason(tmp_path):
    kept = []
    for seconds in ((1.0, 2.0), (2.0, 1.0)):
        spool = fresh(tmp_path)
        for value in seconds:
            spool.add(WEIGHTS, Metadata(5, "same", metrics={"seconds": value}))
        assert spool.repeated == 1 and not spool.rejections
        kept.append(read_spool(spool.uploads)[0].metrics)
    assert kept[0] == kept[1]


@pytest.mark.parametrize("damage", ["weights", "manifest", "no weights", "no json", "wrong fields"])
def test_damage_is_noticed(damage, tmp_path):
    spool = fresh(tmp_path)
    spool.add(WEIGHTS, Metadata(1, "good"))
    spool.add(full(1), Metadata(1, "bad"))
    (manifest,) = spool.uploads.glob("bad.*.json")
    weights = manifest.with_suffix(".safetensors")
    if damage == "weights":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:20])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no json":
        manifest.write_text("[]")
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "more": 1}))
    with pytest.raises(UploadError, match="bad"):
        read_spool(spool.uploads)
    damaged = []
    assert [upload.client for upload in read_spool(spool.uploads, damaged.append)] == ["good"]
    assert damaged[0].client == "bad"


def test_an_unfinished_upload_does_not_count(tmp_path):
    spool = fresh(tmp_path)
    (spool.uploads / "half.safetensors").write_bytes(b"half")
    (spool.uploads / "half.json.tmp").write_text("{")
    assert read_spool(spool.uploads) == []


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        ("fedmitr_app.uploads.upload.save_file", SafetensorError("I/O error: no space left (28)")),
        ("os.fsync", OSError(28, "No space left on device")),
        ("os.replace", OSError(28, "No space left on device")),
    ],
)
def test_a_failing_write_leaves_nothing_behind(failing, error, tmp_path, monkeypatch):
    spool = fresh(tmp_path)

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(failing, full)
    with pytest.raises(RunFolderError, match="cannot be written: .*no space left.*; free some"):
        spool.add(WEIGHTS, Metadata(1, "x"))
    assert list(spool.uploads.iterdir()) == []


def test_a_used_folder_is_refused(tmp_path):
    Spool(tmp_path / "u", tmp_path / "r").add(WEIGHTS, Metadata(1, "x"))
    with pytest.raises(RunFolderError, match="already holds uploads"):
        Spool(tmp_path / "u", tmp_path / "r")


def test_an_upload_reads_its_weights_only_when_asked(tmp_path):
    upload = Upload("x", 1, tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError):
        upload.load_state()
