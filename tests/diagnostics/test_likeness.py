"""Features of two sets of images compared, against sums by hand."""

import pytest
import torch

from fedmitr_app.diagnostics import likeness, target_share
from tests.helpers.tiny import CLASSES, random_images, tiny_teacher, tiny_vit


def test_the_figures_are_those_of_sums_over_features_by_hand():
    model, images, real = tiny_vit(), random_images(7, seed=1), 0.5 * random_images(9, seed=2)
    found = likeness(model, images, real)
    distances, spreads = [], []
    with torch.no_grad():
        ours, theirs = (
            torch.stack([model(one[None]).features[0] for one in some]) for some in (images, real)
        )
    for feature in range(ours.shape[1]):
        a, b = ours[:, feature].tolist(), theirs[:, feature].tolist()
        means = [sum(values) / len(values) for values in (a, b)]
        sds = [
            (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
            for values, mean in zip((a, b), means)
        ]
        distances.append(abs(means[0] - means[1]) / sds[1])
        spreads.append(sds[0] / sds[1])
    assert found.distance == pytest.approx(sum(distances) / len(distances))
    assert found.spread == pytest.approx(sum(spreads) / len(spreads))


def test_images_are_like_themselves_and_unlike_others():
    model, images = tiny_vit(), random_images(200)
    same = likeness(model, images, images)
    assert same.distance == pytest.approx(0) and same.spread == pytest.approx(1)
    assert likeness(model, random_images(200, seed=5), images).distance < 0.2
    assert likeness(model, images + 2, images).distance > 0.5
    assert likeness(model, 0.3 * images, images).spread < 0.8


def test_a_feature_that_never_varies_says_nothing():
    model, images = tiny_vit(), random_images(5)
    with torch.no_grad():
        model.vit.norm.weight[3] = 0.0
    found = likeness(model, random_images(5, seed=3), images)
    assert 0 < found.distance < 10 and 0 < found.spread < 10


def test_the_share_that_is_read_as_the_target():
    teacher, images = tiny_teacher(), random_images(70)
    read = teacher(images).logits.argmax(-1)
    targets = torch.eye(CLASSES)[read]
    assert target_share(teacher, images, targets) == 1.0
    targets[:7] = targets[:7].roll(1, dims=1)
    assert target_share(teacher, images, targets) == pytest.approx(0.9)
