"""Every model is asked about a test image once, whoever it stands for."""

import pytest
import torch

from fedmitr_app.config import TeacherConfig
from fedmitr_app.models import PatchViT
from fedmitr_app.scoring import AccuracyBench
from fedmitr_app.teacher import ClientModel, Teacher
from tests.helpers.tiny import CLASSES, SPEC, tiny_vit

CPU = torch.device("cpu")
IMAGES, BATCH = 7, 3


@pytest.fixture
def asked(monkeypatch):
    """Count the batches that each model is shown."""
    found, forward = [], PatchViT.forward

    def listen(model, *parts, **named):
        found.append(model)
        return forward(model, *parts, **named)

    monkeypatch.setattr(PatchViT, "forward", listen)
    return found


def bench_of(heard=None):
    draws = torch.Generator().manual_seed(0)
    shape = (IMAGES, SPEC.channels, SPEC.size, SPEC.size)
    pixels = torch.randint(0, 256, shape, generator=draws, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=draws)
    hear = (lambda count: heard.append(count)) if heard is not None else lambda count: None
    return AccuracyBench(pixels, labels, tiny_vit(0, torch.float32), CPU, BATCH, hear)


def clients_of(count=3):
    models = [tiny_vit(seed, torch.float32) for seed in range(count)]
    return [ClientModel(f"client-{k}", model, 10 + k) for k, model in enumerate(models)]


@pytest.mark.parametrize("combine", ["mean-logits", "mean-softmax", "median-softmax", "confidence"])
def test_teacher_and_clients_are_right_as_often_as_by_hand(asked, combine):
    clients, heard = clients_of(), []
    teacher = Teacher.build(clients, TeacherConfig(combine), lambda: None)
    bench = bench_of(heard)
    found = bench.teacher_accuracy(teacher)
    each = [bench.model_accuracy(client.model) for client in clients]
    assert len(asked) == 3 * 3  # three batches each, and not again
    assert sum(heard) == 3 * IMAGES
    images = SPEC.normalise(bench.images)
    with torch.no_grad():
        right = teacher(images).logits.argmax(1) == bench.labels
        alone = [client.model(images).logits.argmax(1) == bench.labels for client in clients]
    assert found == pytest.approx(float(right.float().mean()))
    assert each == pytest.approx([float(one.float().mean()) for one in alone])


def test_answers_from_elsewhere_are_taken(asked):
    bench, (client, other) = bench_of(), clients_of(2)
    answers = torch.eye(CLASSES)[bench.labels]
    bench.know(client.model, answers)
    assert bench.knows(client.model) and not bench.knows(other.model)
    assert bench.model_accuracy(client.model) == 1 and not asked
    assert torch.equal(bench.logits_of(client.model), answers)


def test_without_images_nothing_is_right():
    bench = bench_of()
    bench.images, bench.labels = bench.images[:0], bench.labels[:0]
    assert bench.model_accuracy(tiny_vit(1, torch.float32)) == 0


def test_counts_by_class_are_those_of_a_loop():
    bench, model = bench_of(), tiny_vit(1, torch.float32)
    assert bench.by_class() == {}
    clients = clients_of()
    teacher = Teacher.build(clients, TeacherConfig("mean-logits"), lambda: None)
    bench.compare(clients, teacher, tiny_vit(2, torch.float32).vit.state_dict(), None)
    bench.state_accuracy(model.vit.state_dict(), "student")
    found = bench.by_class()
    assert found.keys() == {"images", "teacher", "fedavg", "student", "confusions"}
    said = bench.logits_of(model).argmax(1).tolist()
    labels = bench.labels.tolist()
    right, wrong = [0] * CLASSES, {}
    for label, answer in zip(labels, said):
        right[label] += label == answer
        if label != answer:
            wrong[label, answer] = wrong.get((label, answer), 0) + 1
    assert found["images"] == [labels.count(each) for each in range(CLASSES)]
    assert found["student"] == right
    assert {(label, answer): count for label, answer, count in found["confusions"]} == wrong
    often = [count for *_, count in found["confusions"]]
    assert often == sorted(often, reverse=True) and sum(often) == len(labels) - sum(right)
