"""What a client writes into a head of class means, and what a server reads off it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedmitr_app.uploads import most_lack_class_means, read_class_means, set_class_means
from fedmitr_app.uploads.class_means import LEAST_SHARE, ClassMeans
from tests.helpers.shards import problem

CLASSES, SIZE = 4, 16
COUNTS = torch.tensor([30, 10, 0, 1])


def uploaded(seed: int = 0, spread: float = 1.0, name: str = "norm"):
    """Return an upload's last arrays, and the features and labels that its head is made of."""
    draws = torch.Generator().manual_seed(seed)
    norm, head = nn.LayerNorm(SIZE), nn.Linear(SIZE, CLASSES)
    labels = torch.repeat_interleave(torch.arange(CLASSES), COUNTS)
    with torch.no_grad():
        norm.weight.copy_(1 + spread * torch.rand(SIZE, generator=draws))
        norm.bias.copy_(spread * torch.randn(SIZE, generator=draws))
        features = norm(torch.randn(len(labels), SIZE, generator=draws) + labels.unsqueeze(1).cos())
    set_class_means(head, features, labels, by_share=True)
    arrays = {f"{name}.{part}": value.detach() for part, value in norm.named_parameters()}
    arrays |= {f"head.{part}": value.detach() for part, value in head.named_parameters()}
    return arrays, features, labels


def test_a_head_of_class_means_answers_by_the_nearest_mean():
    features, labels = problem(held=3)
    head = nn.Linear(5, 4)
    set_class_means(head, features, labels)
    means = torch.stack([features[labels == c].mean(0) for c in range(3)])
    nearest = torch.cdist(features, means).argmin(1)
    assert torch.equal(head(features)[:, :3].argmax(1), nearest)
    assert not head.weight[3].any() and head.bias[3] == 0


def test_averaging_class_means_by_examples_is_as_if_one_client_held_all_images():
    features, labels = problem(held=4)
    own = [torch.arange(60) < 7, (torch.arange(60) >= 7) & (labels < 2), labels >= 2]
    own[2] &= torch.arange(60) >= 7
    heads, counts = [], []
    for rows in own:
        heads.append(nn.Linear(5, 4))
        counts.append(int(rows.sum()))
        set_class_means(heads[-1], features[rows], labels[rows], by_share=True)
    together = nn.Linear(5, 4)
    set_class_means(together, features, labels, by_share=True)
    assert sum(counts) == 60
    averaged = sum(count / 60 * head.weight for count, head in zip(counts, heads))
    assert torch.allclose(averaged, together.weight, atol=1e-6)


def initial(arrays) -> dict[str, torch.Tensor]:
    """θ₀ with the upload's own norm."""
    return {name: value.clone() for name, value in arrays.items()}


def read(arrays, start=None) -> ClassMeans | None:
    (found,) = read_class_means([arrays], start or initial(arrays))
    return found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.floats(0, 3), half=st.booleans())
def test_what_is_read_is_what_was_written(seed, spread, half):
    arrays, features, labels = uploaded(seed, spread)
    if half:
        arrays = {name: value.bfloat16() for name, value in arrays.items()}
    found = read(arrays)
    rounding = 0.03 if half else 1e-4
    assert (found.shares - COUNTS / 41).abs().max() < rounding
    for c in (0, 1, 3):
        mean = features[labels == c].mean(0)
        assert (found.means[c] - mean).norm() < rounding * (1 + mean.norm())
    assert not found.means[2].any()


@pytest.mark.parametrize(
    "change",
    ["trained", "longer", "negated", "zero", "row without bias", "bias without row", "tiny share"],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_nothing_is_read_off_another_head(change, sign):
    arrays, _, _ = uploaded()
    rows, biases = arrays["head.weight"], arrays["head.bias"]
    match change:
        case "trained":
            head = nn.Linear(SIZE, CLASSES)
            arrays |= {f"head.{name}": value for name, value in head.named_parameters()}
        case "longer":
            rows *= 1.5 * sign
        case "negated":
            biases *= -1
        case "zero":
            rows.zero_()
            biases.zero_()
        case "row without bias":
            rows[2] = 1.0
        case "bias without row":
            biases[2] = 5.0 * sign
        case "tiny share":
            rows[3], biases[3] = 1e-2 * LEAST_SHARE * rows[3], 1e-2 * LEAST_SHARE * biases[3]
    assert read(arrays) is None


@pytest.mark.parametrize("norm", ["layer", "of the patches' mean", "root mean square", "none"])
@pytest.mark.parametrize("classes", [[0], [0, 1, 3]])
def test_means_that_no_feature_can_have_are_not_believed(norm, classes):
    """A row longer by a factor and a bias by its square: the shares are as they were."""
    whole = norm in ("layer", "of the patches' mean")
    name = "fc_norm" if norm == "of the patches' mean" else "norm"
    arrays, _, _ = uploaded(spread=1.0 if whole else 0.0, name=name)
    if not whole:
        del arrays["norm.bias"]
    if norm == "none":
        del arrays["norm.weight"]
    assert read(arrays) is not None
    arrays["head.weight"][classes] *= 30
    arrays["head.bias"][classes] *= 30**2
    assert read(arrays) is None


@pytest.mark.parametrize("norm", ["norm", "fc_norm"])
@pytest.mark.parametrize("change", ["longer", "moved"])
def test_features_of_another_frame_are_not_believed(change, norm):
    """The norm and the means alike: the client's own answers, or their softmax, are as before."""
    honest, features, labels = uploaded(name=norm)
    arrays = initial(honest)
    factor, offset = (2.0, 0.0) if change == "longer" else (1.0, 1.0)
    arrays[f"{norm}.weight"] *= factor
    arrays[f"{norm}.bias"] = factor * arrays[f"{norm}.bias"] + offset
    head = nn.Linear(SIZE, CLASSES)
    set_class_means(head, factor * features + offset, labels, by_share=True)
    arrays |= {f"head.{name}": value.detach() for name, value in head.named_parameters()}
    assert read(arrays) is not None  # where θ₀ has that frame too
    found = read_class_means([honest, arrays, honest, honest], honest)
    assert [one is None for one in found] == [False, True, False, False]


def test_most_decide_which_frame_is_the_usual_one():
    """All clients together may leave θ₀'s, as a long training does."""
    honest, _, _ = uploaded()
    start = initial(honest)
    start["norm.weight"] *= 0.5
    assert all(one is not None for one in read_class_means([honest] * 3, start))
    assert read_class_means([honest], start) == [None]


@pytest.mark.parametrize(("others", "most"), [("", False), ("b", False), ("bc", True)])
def test_others_are_named_and_most_of_them_decide(others, most, caplog):
    keys = ["a", "b", "c"]
    one = [None if key in others else torch.ones(1) for key in keys]
    assert most_lack_class_means(one, keys, "merge.head = 'additive'", "average") is most
    assert (", ".join(others) in caplog.text) and ("'average' instead" in caplog.text) is most
    assert bool(caplog.records) is bool(others)
