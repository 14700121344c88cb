"""Who is distrusted, by figures computed here by hand, on answers made up for it."""

import math

import pytest
import torch

from fedmitr_app.config import TeacherConfig
from fedmitr_app.teacher import ClientModel, Teacher, judge_answers, priors_of, same_answers
from fedmitr_app.teacher.screening import (
    CLIP,
    agreements,
    clipping,
    mutual_information,
    relative_sizes,
)
from tests.helpers.tiny import random_images, tiny_vit

CLIENTS, IMAGES, CLASSES = 5, 400, 4


def honest(skew: float = 2.0, noise: float = 0.7) -> torch.Tensor:
    """Clients that read the same truth, each preferring two classes; ``[K, n, C]``."""
    rng = torch.Generator().manual_seed(0)
    truth = torch.randn(IMAGES, CLASSES, generator=rng)
    prefers = torch.zeros(CLIENTS, CLASSES)
    for client in range(CLIENTS):
        prefers[client, [client % CLASSES, (client + 1) % CLASSES]] = skew
    return truth + prefers[:, None] + noise * torch.randn(CLIENTS, IMAGES, CLASSES, generator=rng)


def spoilt(how: str, client: int = 2) -> torch.Tensor:
    logits = honest()
    logits[client] = {
        "loud": 100 * logits[client],
        "constant": torch.tensor([6.0, 0.0, 0.0, 0.0]).expand(IMAGES, CLASSES),
        "flipped": logits[client].flip(-1),
        "not a number": torch.full((IMAGES, CLASSES), torch.nan),
    }[how]
    return logits


def test_honest_clients_are_all_trusted():
    assert [trust.reason for trust in judge_answers(honest())] == [""] * CLIENTS


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("loud", "times the median client's"),
        ("constant", "alike"),
        ("flipped", "contradict"),
        ("not a number", "not finite"),
    ],
)
@pytest.mark.parametrize("client", [0, 2, 4])
def test_one_that_is_not_is_found(how, words, client):
    reasons = [trust.reason for trust in judge_answers(spoilt(how, client))]
    assert words in reasons.pop(client) and reasons == [""] * (CLIENTS - 1)


def test_the_clients_order_does_not_matter():
    order = torch.tensor([3, 1, 4, 0, 2])
    reasons = [trust.reason for trust in judge_answers(spoilt("flipped"))]
    assert [trust.reason for trust in judge_answers(spoilt("flipped")[order])] == [
        reasons[client] for client in order
    ]


def test_more_than_half_always_remain():
    noise = torch.randn(CLIENTS, IMAGES, CLASSES, generator=torch.Generator().manual_seed(5))
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).reshape(-1, 1, 1)
    logits = signs * honest(0.0, 0.1) + 0.01 * noise
    assert sum(not trust.reason for trust in judge_answers(logits)) == 3


@pytest.mark.parametrize("clients", [1, 2])
def test_few_clients_contradict_nobody(clients):
    logits = honest()[:clients].clone()
    logits[-1] = logits[-1].flip(-1)
    assert [trust.reason for trust in judge_answers(logits)] == [""] * clients


def test_if_all_are_alike_silent_nobody_is_left_out_but_what_is_no_number_always_is():
    assert all(not trust.reason for trust in judge_answers(torch.zeros(3, IMAGES, CLASSES)))
    assert all(trust.broken for trust in judge_answers(torch.full((3, 9, 2), torch.nan)))


@pytest.mark.parametrize("factor", [1e5, 1e30, 1e37])
def test_what_drowns_out_everything_is_broken_whatever_the_defence(factor):
    logits = honest()
    logits[1] *= factor
    trust = judge_answers(logits)
    assert [each.broken for each in trust] == [False, True, *[False] * (CLIENTS - 2)]
    assert trust[1].left_out(strict=False) and "times the median client's" in trust[1].reason
    assert relative_sizes(logits)[1].item() == pytest.approx(factor, rel=1.0)


def test_information_by_definition():
    logits = honest()[:2, :7]
    for client in range(2):
        rows = logits[client].double().softmax(-1).tolist()
        mean = [sum(row[label] for row in rows) / 7 for label in range(CLASSES)]
        entropies = [-sum(p * math.log(p) for p in row) for row in [mean, *rows]]
        expected = entropies[0] - sum(entropies[1:]) / 7
        assert mutual_information(logits)[client].item() == pytest.approx(expected, abs=1e-5)


def test_agreement_is_the_correlation_when_two_know_the_same():
    logits = honest(skew=0.0)[:2]
    centred = logits - logits.mean(-1, keepdim=True)
    by_class = [torch.corrcoef(centred[:, :, label])[0, 1].item() for label in range(CLASSES)]
    found = agreements(logits, priors_of(logits))
    assert found[0] == pytest.approx(found[1].item(), abs=1e-5)
    assert min(by_class) <= found[0].item() <= max(by_class)


def test_clipping_leaves_the_others_as_they_are():
    logits = honest()
    logits[3] *= 100
    factors = clipping(logits)
    assert factors[[0, 1, 2, 4]].tolist() == [1.0] * 4
    centred = logits - logits.mean(-1, keepdim=True)
    sizes = (centred * factors.reshape(-1, 1, 1)).square().mean((1, 2)).sqrt()
    median = centred.square().mean((1, 2)).sqrt().median()
    assert sizes[3].item() == pytest.approx(CLIP * median.item(), rel=1e-4)


@pytest.mark.parametrize("combine", ["mean-logits", "prior-probed", "mean-softmax"])
def test_a_teacher_that_clips_hears_everybody_at_the_same_size(combine):
    models, images = [tiny_vit(number) for number in range(3)], random_images(4)
    models[1].vit.head.weight.data *= 100
    logits = torch.stack([model(images).logits for model in models]).detach()
    known = [ClientModel(str(number), model, 10) for number, model in enumerate(models)]
    teacher = Teacher.build(known, TeacherConfig(combine, defence="clip"), lambda: logits)
    softened = logits * clipping(logits).reshape(-1, 1, 1)
    plain = Teacher.build(known, TeacherConfig(combine), lambda: softened)
    found, expected = teacher(images).logits, plain.combine_logits(softened)
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1))
    with torch.no_grad():
        tokens = torch.randn(3, 4, 6, logits.shape[-1], dtype=logits.dtype)
        assert teacher.combine_logits(tokens).shape == tokens.shape[1:]


def test_the_same_answers_are_told_from_those_that_are_only_alike():
    logits = honest()
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(logits.shape[1:], generator=rng)
    logits[3] = logits[1] + 1e-3 * noise + 7.0  # a softmax doesn't see what all have in common
    logits[4] = logits[1] + 0.1 * noise
    assert same_answers(logits) == [0, 1, 2, 1, 4]
    logits[1] = torch.nan
    assert same_answers(logits) == [0, 1, 2, 3, 4]


def test_copies_go_and_vote_nowhere():
    """Three that say the same make honest clients look odd, until they count once."""
    flipped = honest()[0].flip(-1)
    logits = torch.cat([honest()[1:], flipped.expand(4, -1, -1)])
    alone = judge_answers(logits[:5])
    trust = judge_answers(logits, {5: "client-4", 6: "client-4", 7: "client-4"})
    assert [each.reason for each in trust[:5]] == [each.reason for each in alone]
    assert "contradict" in trust[4].reason and not trust[4].copy
    for copy in trust[5:]:
        assert copy.copy and copy.left_out(strict=False)
        assert copy.reason == "its model, or most of it, is that of 'client-4', and counts once"
    assert [each.size for each in trust[:5]] == [each.size for each in alone]
