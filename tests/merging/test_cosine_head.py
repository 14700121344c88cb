"""A head of equally long rows, and what it mends of class means' averages."""

import torch
from torch import nn

from fedmitr_app.config import MergeConfig
from fedmitr_app.merging import Mergeable, merge
from fedmitr_app.training import set_class_means
from tests.helpers.merges import drawn, sent, unasked

COSINE = MergeConfig(head="cosine")


def merged_of(tmp_path, states):
    uploads = sent(tmp_path, states)
    taken = Mergeable.of(uploads, states[0])
    return merge(taken, MergeConfig(), unasked), merge(taken, COSINE, unasked)


def test_rows_point_where_the_averages_do_and_are_as_long_as_all_of_them_together(tmp_path):
    average, cosine = merged_of(tmp_path, [drawn(seed) for seed in range(3)])
    rows, before = cosine["head.weight"], average["head.weight"]
    assert torch.allclose(rows.norm(dim=1), before.norm(dim=1).sum().expand(5), rtol=1e-5)
    assert torch.allclose(torch.cosine_similarity(rows, before), torch.ones(5), atol=1e-6)
    assert not cosine["head.bias"].any()
    others = average.keys() - {"head.weight", "head.bias"}
    assert all(torch.equal(cosine[name], average[name]) for name in others)


def test_a_class_that_nobody_holds_has_a_row_of_zeros(tmp_path):
    states = [drawn(seed) for seed in range(2)]
    for state in states:
        state["head.weight"][3] = 0
    _, cosine = merged_of(tmp_path, states)
    assert not cosine["head.weight"][3].any() and cosine["head.weight"].isfinite().all()


def test_a_rare_class_is_answered_as_well_as_a_frequent_one(tmp_path):
    draws = torch.Generator().manual_seed(0)
    means = 3 * nn.functional.normalize(torch.randn(5, 4, generator=draws), dim=1)
    counts = torch.tensor([[200, 100, 0, 0, 2], [0, 50, 100, 4, 0]])
    states, images, labels = [], [], []
    for own in counts:
        truth = torch.repeat_interleave(torch.arange(5), own)
        features = means[truth] + 0.3 * torch.randn(len(truth), 4, generator=draws)
        head = nn.Linear(4, 5)
        set_class_means(head, features, truth, by_share=True)
        states.append(drawn(0) | {f"head.{k}": v.detach() for k, v in head.named_parameters()})
        images.append(features)
        labels.append(truth)
    average, cosine = merged_of(tmp_path, states)
    features, truth = torch.cat(images), torch.cat(labels)
    rare = truth >= 3

    def right(state):
        answers = features @ state["head.weight"].T + state["head.bias"]
        return (answers.argmax(1) == truth)[rare].float().mean()

    assert right(average) < 0.7
    assert right(cosine) > 0.9
