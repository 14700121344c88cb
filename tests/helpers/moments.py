"""Class moments of made-up features."""

import numpy as np

from fedmitr_app.uploads import (
    ClassMoments,
)

CLASSES, SIZE = 3, 4


def moments_of(features, labels):
    """By definition, one image at a time."""
    counts, sums = np.zeros(CLASSES), np.zeros((CLASSES, SIZE))
    scatter = np.zeros((SIZE, SIZE))
    for feature, label in zip(features, labels):
        counts[label] += 1
        sums[label] += feature
        scatter += np.outer(feature, feature)
    return ClassMoments(counts, sums, scatter)


def draw(count, seed=0, classes=(0, 2)):
    rng = np.random.default_rng(seed)
    return rng.normal(3.0, 1.0, (count, SIZE)), rng.choice(classes, count)
