"""Where the student starts and what of it trains."""

import copy

import pytest
import torch

from fedmitr_app.distillation import initial_student
from fedmitr_app.distillation.students import best_client, choose_trainable
from fedmitr_app.teacher import ClientModel
from tests.helpers.tiny import distillation_config, random_images, tiny_teacher, tiny_vit


def clients() -> list[ClientModel]:
    return [ClientModel(f"c{k}", m, 10) for k, m in enumerate(tiny_teacher().models)]


def agreement_by_hand(teacher, images) -> list[int]:
    counts = []
    for model in teacher.models:
        same = 0
        for image in images:
            answer = int(model.vit(image[None]).argmax())
            same += answer == int(teacher(image[None]).logits.argmax())
        counts.append(same)
    return counts


def same_state(one, other) -> bool:
    other = other.vit.state_dict() if hasattr(other, "vit") else other
    return all(torch.equal(value, other[key]) for key, value in one.vit.state_dict().items())


@pytest.mark.parametrize("kind", ["initial", "merged", "best-client"])
def test_where_the_student_starts(kind):
    teacher, images = tiny_teacher(), random_images(20)
    model, merged = tiny_vit(30), tiny_vit(31).vit.state_dict()
    counts = agreement_by_hand(teacher, images)
    expected = {
        "initial": tiny_vit(30),
        "merged": merged,
        "best-client": clients()[counts.index(max(counts))].model,
    }
    student = initial_student(kind, model, clients(), merged, teacher, images)
    assert same_state(student, expected[kind])
    # A model of its own: training it changes neither θ₀ nor a client.
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert same_state(model, tiny_vit(30)) and merged["head.weight"].abs().sum() > 0
    assert all(c.model.vit.head.weight.abs().sum() > 0 for c in clients())


def test_the_best_client_agrees_most_with_the_teacher():
    teacher, images = tiny_teacher(), random_images(20)
    counts = agreement_by_hand(teacher, images)
    assert len(set(counts)) > 1
    assert best_client(clients(), teacher, images) == counts.index(max(counts))


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"train": "all"}, ("",)),
        ({"train": "head"}, ("head.",)),
        ({"train": "last-blocks", "last_blocks": 1}, ("blocks.1.", "norm.", "head.")),
        ({"train": "last-blocks", "last_blocks": 2}, ("blocks.", "norm.", "head.")),
        ({"train": "last-blocks", "last_blocks": 9}, ("blocks.", "norm.", "head.")),
    ],
)
def test_what_trains(settings, parts):
    # A client's frozen weights are a student's usual beginning.
    student = copy.deepcopy(tiny_vit(0)).requires_grad_(False)
    chosen = choose_trainable(student, distillation_config(**settings))
    trains = {name for name, p in student.vit.named_parameters() if p.requires_grad}
    assert trains == {n for n, _ in student.vit.named_parameters() if n.startswith(parts)}
    assert {id(p) for p in chosen} == {
        id(p) for name, p in student.vit.named_parameters() if name in trains
    }
