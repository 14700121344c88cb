"""A shard's class moments, against one image at a time."""

import numpy as np
import torch

from fedmitr_app.training import class_moments
from tests.helpers.shards import shard_of, tiny_vit


def test_moments_are_sums_over_images_whatever_the_batches():
    model, shard = tiny_vit(classes=4), shard_of([0, 2, 2, 1, 2], classes=4)
    made = class_moments(model, shard, device="cpu", batch_size=2)
    features = []
    with torch.no_grad():
        for image in shard.images:
            pixels = model.spec.normalise(image.unsqueeze(0))
            tokens = model.vit.forward_features(pixels)
            features.append(model.vit.forward_head(tokens, pre_logits=True)[0].double().numpy())
    features = np.stack(features)
    assert made.counts.tolist() == [1, 1, 3, 0]
    assert np.allclose(made.sums[2], features[1] + features[2] + features[4], atol=1e-5)
    assert not made.sums[3].any()
    assert np.allclose(made.scatter, sum(np.outer(row, row) for row in features), atol=1e-4)
    assert all(value.dtype == np.float64 for value in made.arrays().values())
