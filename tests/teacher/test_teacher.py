"""Building the teacher: weights of every combination, prior probing, fallbacks, density."""

import itertools
import logging
import math

import pytest
import torch
from torch import nn

from fedmitr_app.config import TeacherConfig
from fedmitr_app.config.schema import COMBINATIONS
from fedmitr_app.models.patch_vit import ViTOutput
from fedmitr_app.teacher import ClientModel, Teacher, combine_logits, priors_of, probe
from fedmitr_app.teacher.probing import prior_shift
from tests.helpers.tiny import CLASSES, random_images, tiny_teacher, tiny_vit

PRIORS = ((0.7, 0.2, 0.1), (0.1, 0.1, 0.8))
SIZES = (10, 40)


class Biased(nn.Module):
    """Answers every image with one fixed prior, give or take what cancels out."""

    num_classes = 3

    def __init__(self, prior) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(prior).log())

    def forward(self, images, keep_idx=None, *, patch_logits=False, attention=False):
        logits = self.bias.expand(len(images), -1)
        return ViTOutput(logits, logits, logits, None, None)


def clients(counts=(None, None)) -> list[ClientModel]:
    return [ClientModel(f"client-{k}", Biased(PRIORS[k]), SIZES[k], counts[k]) for k in range(2)]


def probed() -> torch.Tensor:
    return probe([Biased(prior) for prior in PRIORS], torch.zeros(5, 1, 4, 4))


def unasked() -> torch.Tensor:
    raise AssertionError("this combination reads no priors")


def build(combine: str, counts=(None, None)) -> Teacher:
    config = TeacherConfig(combine=combine, probe_images=5)
    return Teacher.build(clients(counts), config, probed)


def estimate_by_hand(answers: list[list[float]]) -> list[float]:
    """The 8-norm of each class's probability over the images, normalised."""
    found = []
    for label in range(len(answers[0])):
        found.append((sum(p[label] ** 8 for p in answers) / len(answers)) ** (1 / 8))
    return [value / sum(found) for value in found]


def test_probing_ranks_classes_as_a_fabricated_models_prior_does():
    found = priors_of(probed())
    assert [row.tolist() for row in found] == [pytest.approx(list(prior)) for prior in PRIORS]


def test_probing_against_loops_over_images():
    models, images = [tiny_vit(0), tiny_vit(1)], random_images(7)
    expected = [
        estimate_by_hand([model.vit(image[None]).softmax(-1)[0].tolist() for image in images])
        for model in models
    ]
    read = []
    found = priors_of(probe(models, images, batch_size=3, on_batch=read.append))
    assert read == [3, 3, 1] * 2
    assert [row.tolist() for row in found] == [pytest.approx(row) for row in expected]


def test_probing_finds_a_class_that_few_images_wake():
    # Nine images of ten look like class 0 at 0.6; one is surely class 2; class 1 never is.
    answers = [[0.6, 0.2, 0.2]] * 9 + [[0.01, 0.01, 0.98]]
    asked = iter(answers)

    class Answers(nn.Module):
        def forward(self, images):
            logits = torch.tensor([next(asked) for _ in images]).log()
            return ViTOutput(logits, logits, logits, None, None)

    found = priors_of(probe([Answers()], torch.zeros(10, 1, 4, 4)))[0].tolist()
    assert found == pytest.approx(estimate_by_hand(answers))
    assert found[2] > found[0] > 2 * found[1]


PROBED = [[size**0.5 * share**0.75 for share in prior] for size, prior in zip(SIZES, PRIORS)]


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean-logits", [[1, 1, 1], [1, 1, 1]]),
        ("mean-softmax", [[1, 1, 1], [1, 1, 1]]),
        ("confidence", [[1, 1, 1], [1, 1, 1]]),
        ("num-examples", [[10, 10, 10], [40, 40, 40]]),
        ("prior-probed", PROBED),
        ("prior-confidence", PROBED),
    ],
)
def test_class_weights_by_hand(combine, expected):
    asked = probed if combine.startswith("prior") else unasked
    weights = Teacher.build(clients(), TeacherConfig(combine), asked).class_weights
    torch.testing.assert_close(weights, torch.tensor(expected).float())


@pytest.mark.parametrize("tokens", [False, True])
def test_part_of_a_clients_own_prior_is_taken_from_its_logits(tokens):
    teacher = build("prior-probed")
    logits = torch.randn(2, 4, 5, 3) if tokens else torch.randn(2, 4, 3)
    found = teacher.combine_logits(logits)
    for place in itertools.product(*(range(side) for side in logits.shape[1:-1])):
        for label in range(3):
            total, weights = 0.0, 0.0
            for client, prior in enumerate(PRIORS):
                weight = PROBED[client][label]
                own = logits[(client, *place, label)].item()
                total += weight * (own - 0.4 * math.log(prior[label]))
                weights += weight
            assert found[(*place, label)].item() == pytest.approx(total / weights, abs=1e-5)


def test_a_class_that_a_client_never_saw_is_not_raised_without_end():
    shift = prior_shift(torch.tensor([[1.0, 1e-12]]))
    assert shift.tolist() == [pytest.approx([0.0, 0.4 * math.log(0.01)])]


@pytest.mark.parametrize("combine", ["label-aware", "mean-logits", "num-examples"])
def test_other_combinations_leave_the_logits_as_they_are(combine):
    assert build(combine, counts=((9, 1, 0), (0, 1, 39))).logit_shift is None


def test_label_counts_are_used_as_they_are(caplog):
    shared = clients(((9, 1, 0), (0, 1, 39)))
    teacher = Teacher.build(shared, TeacherConfig("label-aware"), unasked)
    assert teacher.combine == "label-aware" and not caplog.records
    assert teacher.class_weights.tolist() == [[9, 1, 0], [0, 1, 39]]
    assert teacher.normalised_weights.tolist() == [[1, 0.5, 0], [0, 0.5, 1]]


def test_a_class_that_nobody_knows_is_answered_by_everyone_alike():
    teacher = build("label-aware", counts=((9, 0, 0), (0, 0, 39)))
    assert teacher.class_weights.tolist() == [[9, 1, 0], [0, 1, 39]]


def test_shared_counts_take_the_place_of_the_probed_priors():
    shared = clients(((9, 1, 0), (0, 1, 39)))
    teacher = Teacher.build(shared, TeacherConfig("prior-shared"), unasked)
    for client, row, shift in zip(
        shared, teacher.class_weights.tolist(), teacher.logit_shift.tolist(), strict=True
    ):
        shares = [count / sum(client.label_counts) for count in client.label_counts]
        known = [client.num_examples**0.5 * share**0.75 for share in shares]
        assert row == pytest.approx(known)
        assert shift == pytest.approx([0.4 * math.log(max(share, 0.01)) for share in shares])


@pytest.mark.parametrize("combine", ["label-aware", "prior-shared"])
def test_without_everyones_counts_probing_takes_their_place_with_a_warning(combine, caplog):
    with caplog.at_level(logging.WARNING):
        teacher = build(combine, counts=((9, 1, 0), None))
    assert teacher.combine == "prior-probed"
    assert torch.equal(teacher.class_weights, build("prior-probed").class_weights)
    [record] = caplog.records
    assert "client-1" in record.getMessage() and "client-0" not in record.getMessage()
    assert "share-label-counts" in record.getMessage()


def test_the_teacher_is_frozen_and_evaluating():
    model = tiny_vit(0).train()
    config = TeacherConfig(combine="mean-logits", probe_images=2)
    teacher = Teacher.build([ClientModel("a", model, 3)], config, unasked)
    assert not any(p.requires_grad for p in teacher.models[0].parameters())
    assert not any(module.training for module in teacher.models[0].modules())


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_calling_it_combines_the_clients_outputs(combine):
    teacher, images = tiny_teacher(combine), random_images(2)
    keep_idx = torch.tensor([[3, 7, 1], [0, 15, 8]])
    output = teacher(images, keep_idx, patch_logits=True)
    parts = [model(images, keep_idx, patch_logits=True) for model in teacher.models]
    for found, name in ((output.logits, "logits"), (output.patch_logits, "patch_logits")):
        stacked = torch.stack([getattr(part, name) for part in parts])
        torch.testing.assert_close(found, combine_logits(stacked, combine, teacher.class_weights))
        assert not found.requires_grad
    assert teacher(images).patch_logits is None


# --- density


def density_by_hand(teacher, cls_attn, targets, members=None):
    result = torch.zeros(cls_attn.shape[1:], dtype=cls_attn.dtype)
    weights, clients = teacher.class_weights, len(teacher.models)
    for image in range(cls_attn.shape[1]):
        serving = [k for k in range(clients) if members is None or members[k, image]]
        knows = {
            k: sum(
                float(targets[image, c] * weights[k, c] / weights[:, c].sum())
                for c in range(CLASSES)
            )
            for k in serving
        }
        if sum(knows.values()) == 0:
            knows = dict.fromkeys(serving, 1.0)
        for k in serving:
            result[image] += knows[k] / sum(knows.values()) * cls_attn[k, image]
    return result


@pytest.mark.parametrize("subset", [False, True])
def test_density_against_loops(subset):
    teacher = tiny_teacher("prior-probed")
    rng = torch.Generator().manual_seed(0)
    cls_attn = torch.rand(3, 2, 7, generator=rng, dtype=torch.float64)
    targets = torch.rand(2, CLASSES, generator=rng, dtype=torch.float64)
    targets = targets / targets.sum(1, keepdim=True)
    members = torch.tensor([[True, False], [True, True], [False, True]]) if subset else None
    torch.testing.assert_close(
        teacher.density(cls_attn, targets, members),
        density_by_hand(teacher, cls_attn, targets, members),
    )


def test_density_when_no_serving_client_knows_the_target_is_their_plain_mean():
    weights = torch.ones(3, CLASSES, dtype=torch.float64)
    weights[:2, 0] = 0
    teacher = Teacher(tiny_teacher().models, "label-aware", weights)
    cls_attn = torch.rand(3, 1, 7, dtype=torch.float64)
    targets = torch.eye(CLASSES, dtype=torch.float64)[:1]
    members = torch.tensor([[True], [True], [False]])
    torch.testing.assert_close(teacher.density(cls_attn, targets, members), cls_attn[:2].mean(0))


@pytest.mark.parametrize(("device", "kept"), [("meta", torch.bfloat16), ("cpu", torch.float32)])
def test_weights_on_a_gpu_are_rounded_once_for_half_width_products(device, kept):
    models = [tiny_vit(seed, torch.float32).to(device) for seed in range(2)]
    for model in models:
        model.precision = "bfloat16"
    given = [ClientModel(f"client-{k}", model, 10) for k, model in enumerate(models)]
    teacher = Teacher.build(given, TeacherConfig(combine="mean-logits"), unasked)
    assert [model.vit.blocks[0].mlp.fc1.weight.dtype for model in teacher.models] == [kept] * 2
    assert models[0].vit.blocks[0].mlp.fc1.weight.dtype == torch.float32
