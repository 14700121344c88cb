"""Class moments of a client's features: what it may share beside its weights.

FedCGS (Guan et al., "Capturing Global Statistics for One-shot Federated Learning", AAAI 2025)
fits a head from them without training. They say more about the data than weights that were
asked for anyway: each class's number of images and the mean of their features.
"""

import math
import operator
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from fedmitr_app.errors import UploadError
from fedmitr_app.uploads.validate import ArraySpec

# Rounding of sums over a shard may push an eigenvalue that is zero a little below it.
NEGATIVE_SHARE = 1e-6
# Normed features are of order 1, and an upload counts at most 1e12 images: far above both, and
# far below what overflows.
MAX_VALUE = 1e20
MOST_LENGTH = 3.0
"""Times the median client's: what its features' may be, or a third of it (choice)."""
ROUNDING = 1e-3


@dataclass(frozen=True)
class ClassMoments:
    """Counts, sums and second moments of features φ(x) ∈ R^D, all float64.

    They add up: the moments of two shards together are the sums of theirs.
    """

    counts: np.ndarray
    """``[C]`` images of each class."""
    sums: np.ndarray
    """``[C, D]``: Σ φ(x) over each class."""
    scatter: np.ndarray
    """``[D, D]``: Σ φ(x) φ(x)ᵀ over all images."""

    def __add__(self, other: "ClassMoments") -> "ClassMoments":
        """Return the moments of both shards together."""
        return ClassMoments(
            self.counts + other.counts, self.sums + other.sums, self.scatter + other.scatter
        )

    def times(self, factor: float) -> "ClassMoments":
        """Return those of as many times the images."""
        return ClassMoments(self.counts * factor, self.sums * factor, self.scatter * factor)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return them by name, as they travel and as they are kept."""
        return {"counts": self.counts, "sums": self.sums, "scatter": self.scatter}

    def within_scatter(self) -> np.ndarray:
        """Return ``[D, D]``: the scatter about each class's own mean, summed over classes."""
        present = self.counts > 0
        roots = self.sums[present] / np.sqrt(self.counts[present])[:, None]
        within: np.ndarray = self.scatter - roots.T @ roots
        return within


def moments_reference(num_classes: int, features: int) -> dict[str, ArraySpec]:
    """Return the shapes and types that :func:`check_moments` takes."""
    shapes = {
        "counts": (num_classes,),
        "sums": (num_classes, features),
        "scatter": (features, features),
    }
    return {name: ArraySpec(shape, np.dtype(np.float64)) for name, shape in shapes.items()}


def check_moments(arrays: Mapping[str, np.ndarray], num_examples: int | None) -> ClassMoments:
    """Return finite arrays of the right shapes as moments, if some shard can have them.

    Raises
    ------
    UploadError
        In one sentence, for what no images have: counts that aren't whole or don't sum to
        ``num_examples``, sums of a class without images, a scatter that isn't one.
    """
    moments = ClassMoments(**arrays)
    counts, scatter = moments.counts, moments.scatter
    if (counts < 0).any() or (counts != np.floor(counts)).any():
        raise UploadError("its class moments count images that aren't whole numbers from 0 on.")
    if counts.sum() != num_examples:
        raise UploadError(
            f"its class moments count {counts.sum():g} images but num-examples = {num_examples}."
        )
    if moments.sums[counts == 0].any():
        raise UploadError("its class moments hold sums of a class that it has no images of.")
    if max(np.abs(moments.sums).max(), np.abs(scatter).max()) > MAX_VALUE:
        raise UploadError(f"its class moments hold values above {MAX_VALUE:g}.")
    size = float(np.trace(scatter))
    symmetric = np.allclose(scatter, scatter.T, atol=NEGATIVE_SHARE * size)
    try:
        least = np.linalg.eigvalsh(moments.within_scatter())[0]
    except np.linalg.LinAlgError:  # it doesn't converge
        symmetric = False
    if not symmetric or least < -NEGATIVE_SHARE * size:
        raise UploadError("its class moments hold a scatter that no images can have.")
    return moments


def too_long(parts: Sequence[ClassMoments], usual: float, longest: float) -> list[str]:
    """Return for each client's moments why they can't be believed beside the others'; else "".

    Every client's features come from the same θ₀, whose final norm gives them a length that hardly
    depends on the image. Compared are the mean square length of each client's features, and
    that of each class's mean.

    Parameters
    ----------
    usual : float
        Mean square length that θ₀'s norm alone suggests: it votes with the clients.
    longest : float
        Length that no feature can have, by θ₀'s norm.
    """
    squares = [float(np.trace(part.scatter) / part.counts.sum()) for part in parts]
    median = max(statistics.median_low([*squares, usual]), float(np.finfo(np.float32).tiny))
    most = min(MOST_LENGTH * math.sqrt(median), (1 + ROUNDING) * longest)
    reasons = []
    for part, square in zip(parts, squares, strict=True):
        present = part.counts > 0
        means = np.linalg.norm(part.sums[present] / part.counts[present, None], axis=1)
        length = max(math.sqrt(square), float(means.max()))
        what = f"features of length {length:.3g} where the median client's have {median**0.5:.3g}"
        near = median**0.5 / MOST_LENGTH <= math.sqrt(square) and length <= most
        reasons.append("" if near else what)
    return reasons


def pool_moments(parts: Sequence[ClassMoments]) -> ClassMoments:
    """Return the moments of all clients' images together."""
    return reduce(operator.add, parts)
