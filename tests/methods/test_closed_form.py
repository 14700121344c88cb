"""FedCGS and AFL: their heads against scikit-learn's fits to the pooled images themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from sklearn.covariance import oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from fedmitr_app.errors import MethodUnavailable
from fedmitr_app.methods.rivals.afl import MOST, afl, ridge_head
from fedmitr_app.methods.rivals.fedcgs import fedcgs, gaussian_head
from fedmitr_app.methods.settings import MethodSettings
from fedmitr_app.methods.task import Task
from fedmitr_app.training import class_moments
from fedmitr_app.uploads import Metadata, Spool, read_spool
from fedmitr_app.uploads.upload import moments_file
from tests.helpers.moments import CLASSES, draw, moments_of
from tests.helpers.shards import shard_of, tiny_vit

CPU = torch.device("cpu")
HEADS = {fedcgs: gaussian_head, afl: ridge_head}
both = pytest.mark.parametrize("method", HEADS, ids=["fedcgs", "afl"])
both_heads = pytest.mark.parametrize("head_of", HEADS.values(), ids=["fedcgs", "afl"])


@pytest.mark.parametrize("count", [8, 200])
def test_the_head_is_the_discriminant_of_all_images(count):
    features, labels = draw(count, classes=range(CLASSES))
    features = features + np.eye(CLASSES, features.shape[1])[labels] * 2
    weight, bias = gaussian_head(moments_of(features, labels))
    means = np.stack([features[labels == label].mean(0) for label in range(CLASSES)])
    _, share = oas(features - means[labels], assume_centered=True)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=share).fit(features, labels)
    ours = features @ weight.T + bias
    theirs = oracle.decision_function(features)
    # Logits mean something up to a constant in each row.
    assert np.allclose(ours - ours[:, :1], theirs - theirs[:, :1], atol=1e-6)


@pytest.mark.parametrize("count", [8, 200])
def test_the_head_is_the_ridge_regression_of_all_images(count):
    features, labels = draw(count, classes=range(CLASSES))
    features = features + np.eye(CLASSES, features.shape[1])[labels] * 2
    weight, bias = ridge_head(moments_of(features, labels))
    _, share = oas(features)
    share = min(share, MOST)
    penalty = share / (1 - share) * features.var(0).mean() * count
    oracle = Ridge(alpha=penalty, solver="svd").fit(features, np.eye(CLASSES)[labels])
    assert np.allclose(features @ weight.T + bias, oracle.predict(features), atol=1e-8)


@both_heads
@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_a_class_that_no_client_holds_is_never_answered(head_of, spread):
    features, labels = draw(50, classes=(0, 2))
    features = 3 + spread * (features - 3)
    weight, bias = head_of(moments_of(features, labels))
    far = np.random.default_rng(1).normal(0, 100, (200, features.shape[1]))
    assert set((far @ weight.T + bias).argmax(1)) <= {0, 2}
    assert np.isfinite(weight).all() and np.isfinite(bias).all()


@both_heads
@pytest.mark.parametrize("each", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_features_that_do_not_vary_make_a_finite_head(head_of, each, value):
    labels = np.repeat(range(CLASSES), each)
    weight, bias = head_of(moments_of(np.full((len(labels), 4), value), labels))
    for part in (weight, bias):
        assert np.isfinite(part.astype(np.float32)).all()


@both_heads
def test_one_image_of_each_class_makes_the_nearest_one_win(head_of):
    features = np.random.default_rng(0).normal(0, 1, (CLASSES, 4))
    weight, bias = head_of(moments_of(features, range(CLASSES)))
    assert (features @ weight.T + bias).argmax(1).tolist() == list(range(CLASSES))


def task_of(folder, sharing):
    """Two clients whose shards show each class in a place of its own, and whose weights moved."""
    model, spool = tiny_vit(), Spool(folder / "uploads", folder / "rejected")
    shards = [shard_of([0] * 12 + [1] * 3), shard_of([1] * 9 + [2] * 12)]
    for number, (shard, shares) in enumerate(zip(shards, sharing)):
        moments = class_moments(model, shard, device="cpu") if shares else None
        state = model.vit.state_dict().items()
        arrays = {name: value.numpy() + np.float32(0.01 * (1 + number)) for name, value in state}
        spool.add(arrays, Metadata(len(shard), f"client-{number}"), moments)
    uploads = read_spool(spool.uploads)
    return Task.load(model, uploads, MethodSettings(), folder, CPU), shards


@both
def test_two_skewed_shards_make_a_head_for_all_classes(tmp_path, method):
    task, shards = task_of(tmp_path, (True, True))
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    fused = method(task)
    changed = {
        name
        for name, value in fused.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"vit.head.weight", "vit.head.bias"}
    assert all(torch.equal(value, before[k]) for k, value in task.model.state_dict().items())
    images, labels = (
        torch.cat([getattr(shard, part) for shard in shards]) for part in ("images", "labels")
    )
    logits = fused.predict(task.model.spec.normalise(images))
    # Neither client alone has seen all classes; features of a random θ₀ hardly vary.
    assert (logits.argmax(1) == labels).float().mean() > 0.9


@both
def test_those_that_share_none_are_named_and_cost_the_others_nothing(tmp_path, caplog, method):
    task, _ = task_of(tmp_path, (True, False))
    head = method(task).model.vit.head
    assert "without client-1, of whom there are no class moments" in caplog.text
    alone = replace(task, uploads=task.uploads[:1], clients=task.clients[:1])
    alone = method(alone).model.vit.head
    assert torch.equal(head.weight, alone.weight)
    task, _ = task_of(tmp_path / "none", (False, False))
    words = "^client-0, client-1 uploaded no class moments: set client.share-"
    with pytest.raises(MethodUnavailable, match=words):
        method(task)


@both
@pytest.mark.parametrize("factor", [30.0, 1 / 30])
def test_features_that_theta0_does_not_give_are_left_out(tmp_path, caplog, method, factor):
    task, _ = task_of(tmp_path, (True, True))
    liar = task.uploads[1]
    alone = replace(task, uploads=task.uploads[:1], clients=task.clients[:1])
    expected = method(alone).model.vit.head
    moments = liar.load_moments()
    scaled = replace(moments, sums=factor * moments.sums, scatter=factor**2 * moments.scatter)
    save_file(scaled.arrays(), moments_file(liar.weights))
    head = method(task).model.vit.head
    assert torch.equal(head.weight, expected.weight)
    assert "The class moments of client-1 are left out: features of length" in caplog.text
    lying = replace(task, uploads=task.uploads[1:], clients=task.clients[1:])
    if factor > 1:  # of one alone only what is longer than θ₀'s norm allows can't be
        with pytest.raises(MethodUnavailable, match="no client's class moments can be those"):
            method(lying)


@both
def test_a_model_whose_features_no_norm_measures_is_refused_in_a_sentence(tmp_path, method):
    task, _ = task_of(tmp_path, (True, True))
    task.model.vit.norm = torch.nn.Identity()  # as timm builds it with final_norm=False
    with pytest.raises(MethodUnavailable, match="^the initial model doesn't end in a LayerNorm"):
        method(task)


@both
def test_a_claim_that_is_not_believed_counts_for_no_more_here(tmp_path, method):
    """Moments add up by their numbers of images: a thousand times as many are no louder."""
    task, _ = task_of(tmp_path, (True, True))
    boasting = replace(task.uploads[1], num_examples=21 * 10**6)
    moments = boasting.load_moments()
    save_file(moments.times(10**6).arrays(), moments_file(boasting.weights))
    uploads = (task.uploads[0], boasting)
    found = Task.load(task.model, uploads, task.settings, tmp_path, CPU)
    assert [client.num_examples for client in found.clients] == [1, 1]
    parts = [task.uploads[0].load_moments().times(1 / 15), moments.times(1 / 21)]
    weight, _ = HEADS[method](parts[0] + parts[1])
    found = method(found).model.vit.head.weight
    torch.testing.assert_close(found, torch.from_numpy(weight).float(), rtol=1e-4, atol=1e-4)
