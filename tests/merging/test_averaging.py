"""Averaging against numpy, and its memory."""

import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fedmitr_app.errors import ConfigError, UploadError
from fedmitr_app.uploads import Metadata, Spool, Upload, example_counts, read_spool
from fedmitr_app.uploads.example_weights import client_shares
from tests.helpers.plain_merges import average


def spooled(folder, count, size=5):
    spool = Spool(folder / "uploads", folder / "rejected")
    for number in range(count):
        values = np.random.default_rng(number).normal(size=size).astype(np.float32)
        arrays = {
            "w": values,
            "steps": np.array([number]),
            "flag": np.array([number == 0]),
        }
        spool.add(arrays, Metadata(number + 1, f"client-{number:02d}"))
    return read_spool(spool.uploads)


@pytest.mark.parametrize("weights", ["num-examples", "uniform"])
def test_average_equals_numpys(weights, tmp_path):
    uploads = spooled(tmp_path, 4)
    stacked = np.stack([upload.load_state()["w"].numpy() for upload in uploads])
    shares = [1, 2, 3, 4] if weights == "num-examples" else [1, 1, 1, 1]
    result = average(uploads, weights)
    expected = np.average(stacked.astype(np.float64), axis=0, weights=shares)
    np.testing.assert_array_equal(result["w"].numpy(), expected.astype(np.float32))
    assert result["w"].dtype == torch.float32
    assert result["steps"].tolist() == [2] and result["flag"].tolist() == [False]


@pytest.mark.parametrize(
    ("claimed", "counted"),
    [
        ([5, 1, 900, 2], [5, 1, 6, 2]),  # the lower median is 2
        ([10, 20, 30], [10, 20, 30]),
        ([7], [7]),
        ([None, 5, 9], [1, 1, 1]),  # one that can't be right: all alike
        ([5, 1, 9000, 2], [1, 1, 1, 1]),
    ],
)
def test_where_claims_are_doubted_nobody_counts_for_more_than_thrice_the_median(claimed, counted):
    uploads = [Upload(str(n), count, Path()) for n, count in enumerate(claimed)]
    assert example_counts(uploads, "capped-examples") == counted
    assert client_shares(uploads, "capped-examples") == [each / sum(counted) for each in counted]
    if None not in claimed and max(claimed) < 1000:
        assert example_counts(uploads) == claimed


def test_bad_calls_are_told(tmp_path):
    with pytest.raises(UploadError, match="no upload"):
        average([])
    with pytest.raises(ConfigError, match="weights = 'size'"):
        average(spooled(tmp_path, 1), "size")


def test_the_average_of_equal_models_is_that_model(tmp_path):
    spool = Spool(tmp_path / "uploads", tmp_path / "rejected")
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    for number in range(7):
        spool.add({"w": values}, Metadata(number + 1, f"client-{number}"))
    assert torch.equal(average(read_spool(spool.uploads))["w"], torch.from_numpy(values))


def test_memory_does_not_grow_with_the_number_of_uploads(tmp_path, monkeypatch):
    """One array at a time: spooling 12 uploads peaks no higher than 3, plus 20 %."""
    alive, most = weakref.WeakSet(), []

    class Watched:
        def __init__(self, path, framework):
            self.inner = safe_open(path, framework)

        def __enter__(self):
            self.stored = self.inner.__enter__()
            return self

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

        def keys(self):
            return self.stored.keys()

        def get_tensor(self, name):
            value = self.stored.get_tensor(name)
            alive.add(value)
            most.append(len(alive))
            return value

    monkeypatch.setattr("fedmitr_app.merging.mergeable.safe_open", Watched)

    def peak(folder, count):
        tracemalloc.start()
        average(spooled(folder, count, size=400_000))
        _, bytes_of_numpy = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return bytes_of_numpy

    assert peak(tmp_path / "many", 12) < 1.2 * peak(tmp_path / "few", 3)
    # The one being added, and the one before it until its name is bound anew.
    assert max(most) <= 2
