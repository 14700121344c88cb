"""What a client writes into a head of class means, and what a server reads off it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedmitr_app.training import read_class_means, set_class_means

CLASSES, SIZE = 4, 16
COUNTS = torch.tensor([30, 10, 0, 1])


def shard(held: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % held
    features = torch.randn(60, 5, generator=draws)
    features[:, 0] += 2.0 * labels
    features[:, 1] -= 1.5 * (labels == 1)
    return features, labels


def uploaded(seed: int = 0, spread: float = 1.0):
    """Return an upload's last arrays, and the features and labels that its head is made of."""
    draws = torch.Generator().manual_seed(seed)
    norm, head = nn.LayerNorm(SIZE), nn.Linear(SIZE, CLASSES)
    labels = torch.repeat_interleave(torch.arange(CLASSES), COUNTS)
    with torch.no_grad():
        norm.weight.copy_(1 + spread * torch.rand(SIZE, generator=draws))
        norm.bias.copy_(spread * torch.randn(SIZE, generator=draws))
        features = norm(torch.randn(len(labels), SIZE, generator=draws) + labels.unsqueeze(1).cos())
    set_class_means(head, features, labels, by_share=True)
    arrays = {f"norm.{name}": value.detach() for name, value in norm.named_parameters()}
    arrays |= {f"head.{name}": value.detach() for name, value in head.named_parameters()}
    return arrays, features, labels


def test_a_head_of_class_means_answers_by_the_nearest_mean():
    features, labels = shard(3)
    head = nn.Linear(5, 4)
    set_class_means(head, features, labels)
    means = torch.stack([features[labels == c].mean(0) for c in range(3)])
    nearest = torch.cdist(features, means).argmin(1)
    assert torch.equal(head(features)[:, :3].argmax(1), nearest)
    assert not head.weight[3].any() and head.bias[3] == 0


def test_averaging_class_means_by_examples_is_as_if_one_client_held_all_images():
    features, labels = shard(4)
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


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.floats(0, 3), half=st.booleans())
def test_what_is_read_is_what_was_written(seed, spread, half):
    arrays, features, labels = uploaded(seed, spread)
    if half:
        arrays = {name: value.bfloat16() for name, value in arrays.items()}
    found = read_class_means(arrays)
    rounding = 0.03 if half else 1e-4
    assert (found.shares - COUNTS / 41).abs().max() < rounding
    for c in (0, 1, 3):
        mean = features[labels == c].mean(0)
        assert (found.means[c] - mean).norm() < rounding * (1 + mean.norm())
    assert not found.means[2].any()


@pytest.mark.parametrize("change", ["trained", "longer", "negated", "zero", "a row without a bias"])
def test_nothing_is_read_off_another_head(change):
    arrays, _, _ = uploaded()
    match change:
        case "trained":
            head = nn.Linear(SIZE, CLASSES)
            arrays |= {f"head.{name}": value for name, value in head.named_parameters()}
        case "longer":
            arrays["head.weight"] *= 1.5
        case "negated":
            arrays["head.bias"] *= -1
        case "zero":
            arrays["head.weight"].zero_()
            arrays["head.bias"].zero_()
        case _:
            arrays["head.weight"][2] = 1.0
    assert read_class_means(arrays) is None


@pytest.mark.parametrize("norm", ["layer", "root mean square", "none"])
@pytest.mark.parametrize("classes", [[0], [0, 1, 3]])
def test_means_that_no_feature_can_have_are_not_believed(norm, classes):
    """A row longer by a factor and a bias by its square: the shares are as they were."""
    arrays, _, _ = uploaded(spread=0.0 if norm == "root mean square" else 1.0)
    if norm != "layer":
        del arrays["norm.bias"]
    if norm == "none":
        del arrays["norm.weight"]
    honest = read_class_means(arrays)
    assert honest is not None
    arrays["head.weight"][classes] *= 30
    arrays["head.bias"][classes] *= 30**2
    found = read_class_means(arrays)
    if norm == "none":  # nobody knows how far out features lie
        torch.testing.assert_close(found.means[0], 30 * honest.means[0])
    else:
        assert found is None
