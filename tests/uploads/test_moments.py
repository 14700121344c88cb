"""Class moments: what adds up, what no images can have, and how they are kept."""

from dataclasses import replace

import numpy as np
import pytest

from fedmitr_app.errors import UploadError
from fedmitr_app.uploads import (
    ClassMoments,
    Metadata,
    Spool,
    check_moments,
    moments_reference,
    pool_moments,
    read_spool,
    too_long,
)
from tests.helpers.moments import CLASSES, SIZE, draw, moments_of

WEIGHTS = {"a": np.zeros(2, np.float32)}
OTHER = {"a": np.ones(2, np.float32)}


def test_the_clients_moments_are_those_of_all_their_images():
    features, labels = draw(30)
    parts = [moments_of(features[part], labels[part]) for part in np.split(np.arange(30), [4, 5])]
    pooled, whole = pool_moments(parts), moments_of(features, labels)
    for name, value in whole.arrays().items():
        assert np.allclose(pooled.arrays()[name], value)
    about_means = sum(
        np.outer(row - features[labels == label].mean(0), row - features[labels == label].mean(0))
        for row, label in zip(features, labels)
    )
    assert np.allclose(whole.within_scatter(), about_means)


@pytest.mark.parametrize("count", [1, 2, 50])
def test_the_moments_of_images_pass(count):
    made = moments_of(*draw(count))
    assert set(moments_reference(CLASSES, SIZE)) == set(made.arrays())
    for name, spec in moments_reference(CLASSES, SIZE).items():
        assert (made.arrays()[name].shape, made.arrays()[name].dtype) == (spec.shape, spec.dtype)
    checked = check_moments(made.arrays(), count)
    assert checked.counts is made.counts


def broken(**changes):
    return replace(moments_of(*draw(20)), **changes).arrays()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (broken(counts=np.array([21.0, 0, -1])), "aren't whole numbers"),
        (broken(counts=np.array([19.5, 0, 0.5])), "aren't whole numbers"),
        (broken(counts=np.array([20.0, 0, 1])), "count 21 images but num-examples = 20"),
        (broken(sums=np.ones((CLASSES, SIZE))), "a class that it has no images of"),
        (broken(scatter=-np.eye(SIZE)), "no images can have"),
        (broken(scatter=np.eye(SIZE)), "no images can have"),
        (broken(scatter=1e4 * np.triu(np.ones((SIZE, SIZE)))), "no images can have"),
        (broken(scatter=np.diag([1.7e308] * 3 + [-1.7e308])), "values above 1e[+]20"),
        (broken(sums=np.eye(CLASSES, SIZE) * [[1e160], [0], [0]]), "values above 1e[+]20"),
    ],
)
def test_what_no_images_can_have_is_refused(arrays, words):
    with pytest.raises(UploadError, match=words):
        check_moments(arrays, 20)


def test_they_are_kept_beside_the_weights_and_damage_is_noticed(tmp_path):
    spool = Spool(tmp_path / "uploads", tmp_path / "rejected")
    made = moments_of(*draw(20))
    spool.add(WEIGHTS, Metadata(20, "with"), made)
    spool.add(OTHER, Metadata(20, "without"))
    sharing, silent = read_spool(spool.uploads)
    assert sharing.moments and not silent.moments
    read = sharing.load_moments()
    for name, value in made.arrays().items():
        assert np.array_equal(read.arrays()[name], value)
    assert set(sharing.load_state()) == set(WEIGHTS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content[:-5],
        lambda content: b"",
        lambda content: b"\xff" * 12 + content[12:],
        lambda content: content + b"0",
        None,
    ],
    ids=["a bit", "truncated", "empty", "header", "longer", "gone"],
)
def test_damaged_moments_cost_one_upload_and_not_the_round(damage, tmp_path):
    spool = Spool(tmp_path / "uploads", tmp_path / "rejected")
    spool.add(WEIGHTS, Metadata(20, "with"), moments_of(*draw(20)))
    spool.add(OTHER, Metadata(20, "without"))
    (file,) = spool.uploads.glob("*.moments.safetensors")
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    damaged = []
    (left,) = read_spool(spool.uploads, damaged.append)
    assert left.client == "without" and len(damaged) == 1
    assert file.name in damaged[0].reason


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_no_moments_are_left_of_a_repetition_that_yields(order, tmp_path):
    """Of the same weights sent twice the claim to fewer examples stays."""
    spool = Spool(tmp_path / "uploads", tmp_path / "rejected")
    for turn in order:
        moments = moments_of(*draw(20)) if turn else None
        spool.add(WEIGHTS, Metadata(20 + turn, "same"), moments)
    (kept,) = read_spool(spool.uploads)
    assert kept.num_examples == 20
    assert not kept.moments and not list(spool.uploads.glob("*.moments.safetensors"))


def test_arrays_that_lie_column_by_column_are_kept_as_they_are(tmp_path):
    """safetensors writes memory, not values: a transpose would come back scrambled."""
    spool = Spool(tmp_path / "uploads", tmp_path / "rejected")
    values = np.arange(6, dtype=np.float32).reshape(3, 2).T
    made = moments_of(*draw(20))
    turned = replace(made, sums=np.asfortranarray(made.sums))
    spool.add({"a": values, "b": np.array(1.0, np.float32)}, Metadata(20, "turned"), turned)
    (upload,) = read_spool(spool.uploads)
    state = upload.load_state()
    assert np.array_equal(state["a"].numpy(), values) and state["b"].shape == ()
    assert np.array_equal(upload.load_moments().sums, made.sums)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_one_clients_two_moments_the_same_are_kept_in_any_order(order, tmp_path):
    spool = Spool(tmp_path / "uploads", tmp_path / "rejected")
    made = [moments_of(*draw(20, seed)) for seed in range(2)]
    for turn in order:
        spool.add(WEIGHTS, Metadata(20, "same"), made[turn])
    (kept,) = read_spool(spool.uploads)
    again = Spool(tmp_path / "again", tmp_path / "rejected")
    for turn in (0, 1):
        again.add(WEIGHTS, Metadata(20, "same"), made[turn])
    assert kept.moments == read_spool(again.uploads)[0].moments
    assert np.array_equal(
        kept.load_moments().sums, read_spool(again.uploads)[0].load_moments().sums
    )


def of_length(length, count=40, seed=0, size=16):
    """Features of one length, as a norm without weights makes them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, size))
    features *= length / np.linalg.norm(features, axis=1, keepdims=True)
    counts, sums = np.zeros(CLASSES), np.zeros((CLASSES, size))
    for feature, label in zip(features, rng.integers(0, CLASSES, count)):
        counts[label] += 1
        sums[label] += feature
    return ClassMoments(counts, sums, features.T @ features)


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_features_of_usual_length_are_believed(clients):
    parts = [of_length(length, seed=seed) for seed, length in enumerate([4, 3, 5, 4, 3.5])]
    assert too_long(parts[:clients], usual=16.0, longest=6.0) == [""] * clients


@pytest.mark.parametrize("clients", [2, 3, 5])
@pytest.mark.parametrize(("length", "words"), [(120.0, "120"), (0.1, "0.1"), (14.0, "14")])
def test_features_of_another_length_are_not(clients, length, words):
    """θ₀ votes: also one of two is found out."""
    parts = [of_length(4.0, seed=seed) for seed in range(clients)]
    parts[-1] = of_length(length)
    *honest, found = too_long(parts, usual=16.0, longest=1e9)
    assert honest == [""] * (clients - 1)
    assert found == f"features of length {words} where the median client's have 4"


def test_no_feature_is_longer_than_the_norm_makes_any():
    assert too_long([of_length(5.0)], usual=16.0, longest=5.0) == [""]
    assert too_long([of_length(5.1)], usual=16.0, longest=5.0) != [""]


def test_the_mean_of_a_small_class_is_bounded_too():
    """In the mean over all images it would hardly show."""
    part = of_length(4.0, count=1000)
    part.counts[:] = [999, 1, 0]
    part.sums[:] = 0.0
    part.sums[1, 0] = 100.0
    (found,) = too_long([part], usual=16.0, longest=1e9)
    assert "length 100 where" in found
