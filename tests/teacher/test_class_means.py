"""The ensemble of clients that upload class means: as if label counts were known."""

import pytest
import torch
from torch import nn

from fedmitr_app.config import TeacherConfig
from fedmitr_app.merging.averaging import cosine_head
from fedmitr_app.models import InputSpec
from fedmitr_app.teacher import ClientModel, Teacher
from fedmitr_app.uploads import read_class_means, set_class_means
from tests.helpers.shards import SPEC, tiny_vit

CLASSES = 4
COUNTS = torch.tensor([[30, 10, 0, 0], [0, 2, 17, 0], [5, 5, 5, 5]])
MEANS = TeacherConfig(combine="class-means")


def features_of(labels, draws) -> torch.Tensor:
    """Draw features as a final norm gives them."""
    drawn = torch.randn(len(labels), 16, generator=draws)
    drawn += torch.linspace(0, 1, 16) * labels.unsqueeze(1)
    return nn.functional.layer_norm(drawn, (16,))


def client_of(key: str, model, size: int, label_counts=None) -> ClientModel:
    """Return it with what its head says, as a task does."""
    (told,) = read_class_means([model.vit.state_dict()], tiny_vit(CLASSES).vit.state_dict())
    return ClientModel(key, model, size, label_counts, *(told or ()))


@pytest.fixture(scope="module")
def clients() -> list[ClientModel]:
    made = []
    draws = torch.Generator().manual_seed(0)
    for number, counts in enumerate(COUNTS):
        model = tiny_vit(CLASSES).eval()
        labels = torch.repeat_interleave(torch.arange(CLASSES), counts)
        features = features_of(labels, draws)
        set_class_means(model.vit.head, features, labels, by_share=True)
        made.append(client_of(f"client-{number}", model, int(counts.sum())))
    return made


def unasked():
    raise AssertionError("nobody needs to probe")


def test_each_class_is_weighed_by_the_images_that_clients_have_of_it(clients):
    teacher = Teacher.build(clients, MEANS, unasked)
    spec: InputSpec = clients[0].model.spec
    images = torch.randn(6, 1, spec.size, spec.size, generator=torch.Generator().manual_seed(1))
    slow = torch.zeros(6, CLASSES)
    with torch.no_grad():
        for client, counts in zip(clients, COUNTS):
            logits = client.model(images).logits
            for c in range(CLASSES):
                if counts[c]:
                    balanced = logits[:, c] * counts.sum() / counts[c]
                    slow[:, c] += counts[c] / COUNTS[:, c].sum() * balanced
        assert torch.allclose(teacher(images).logits, slow, atol=1e-4)


def test_images_that_some_clients_serve_are_answered_by_those(clients):
    teacher = Teacher.build(clients, MEANS, unasked)
    logits = torch.randn(3, 2, CLASSES, generator=torch.Generator().manual_seed(2))
    logits[0, :, 2:] = logits[1, :, [0, 3]] = 0  # as rows of zeros answer
    members = torch.tensor([[True, False], [True, False], [False, True]])
    found = teacher.combine_logits(logits, members)
    assert torch.allclose(found[1], logits[2, 1] * 4, atol=1e-4)
    assert torch.allclose(found[0, 0], logits[0, 0, 0] / 0.75, atol=1e-4)
    assert found[0, 3] == 0


def test_the_mean_features_are_read_off_too(clients):
    teacher = Teacher.build(clients, MEANS, unasked)
    draws = torch.Generator().manual_seed(0)
    for counts, found in zip(COUNTS, teacher.class_means, strict=True):
        labels = torch.repeat_interleave(torch.arange(CLASSES), counts)
        features = features_of(labels, draws)
        for c in range(CLASSES):
            own = features[labels == c]
            mean = own.mean(0) if len(own) else torch.zeros(16)
            assert torch.allclose(found[c], mean, atol=1e-4)
    other = client_of("client-x", tiny_vit(CLASSES), 10)
    assert Teacher.build([other], TeacherConfig("mean-logits"), unasked).class_means == (None,)


@pytest.mark.parametrize("head", ["average", "cosine"])
def test_the_merged_model_counts_as_much_as_the_clients_together(clients, head):
    """Of each class; its head is an average, off which shares can't be read."""
    sizes = COUNTS.sum(1) / COUNTS.sum()
    rows = sum(size * each.model.vit.head.weight for size, each in zip(sizes, clients)).detach()
    bias = sum(size * each.model.vit.head.bias for size, each in zip(sizes, clients)).detach()
    shares = COUNTS.sum(0) / COUNTS.sum()
    if head == "cosine":
        state = cosine_head({"head.weight": rows, "head.bias": bias})
        rows, bias, scale = state["head.weight"], state["head.bias"], torch.ones(CLASSES)
    else:
        scale = 1 / shares
    merged = tiny_vit(CLASSES).eval()
    with torch.no_grad():
        merged.vit.head.weight.copy_(rows)
        merged.vit.head.bias.copy_(bias)
    assert client_of("merged", merged, 1).shares is None
    whole = ClientModel("merged", merged, int(COUNTS.sum()), None, shares)
    both = Teacher.build([*clients, whole], MEANS, unasked)
    alone = Teacher.build(clients, MEANS, unasked)
    images = torch.randn(6, 1, SPEC.size, SPEC.size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = (alone(images).logits + scale * merged(images).logits) / 2
    assert torch.allclose(both(images).logits, expected, atol=1e-4)


def test_a_loud_client_is_still_turned_down(clients):
    config = TeacherConfig(combine="class-means", defence="clip")
    probed = torch.randn(3, 20, CLASSES, generator=torch.Generator().manual_seed(3))
    probed[1] *= 100
    plain, clipped = (Teacher.build(clients, each, lambda: probed) for each in (MEANS, config))
    factors = clipped.logit_scale / plain.logit_scale
    assert factors.shape == (3, CLASSES) and factors[1].max() < 0.1


def test_who_has_another_head_is_named_and_teaches_nothing(clients, caplog):
    other = client_of("client-x", tiny_vit(CLASSES), 1000)
    teacher = Teacher.build([*clients, other], MEANS, unasked)
    assert teacher.combine == "class-means" and "client-x are others" in caplog.text
    assert not teacher.class_weights[3].any()
    images = torch.randn(6, 1, SPEC.size, SPEC.size, generator=torch.Generator().manual_seed(1))
    alone = Teacher.build(clients, MEANS, unasked)
    torch.testing.assert_close(teacher(images).logits, alone(images).logits)


def test_a_class_that_nobody_holds_is_not_left_to_another_head(clients):
    draws = torch.Generator().manual_seed(4)
    some = []
    for number in range(2):
        model, labels = tiny_vit(CLASSES).eval(), torch.tensor([0, 0, 1, 2])
        set_class_means(model.vit.head, features_of(labels, draws), labels, by_share=True)
        some.append(client_of(f"client-{number}", model, 4))
    other = client_of("client-x", tiny_vit(CLASSES), 1000)
    teacher = Teacher.build([*some, other], MEANS, unasked)
    assert teacher.class_weights[:, 3].tolist() == [1.0, 1.0, 0.0]


def test_where_most_have_another_head_logits_are_averaged(clients, caplog):
    others = [client_of(f"client-{x}", tiny_vit(CLASSES), 10) for x in "xyz"]
    teacher = Teacher.build([*clients[:2], *others], MEANS, unasked)
    assert teacher.combine == "mean-logits"
    assert "client-x, client-y, client-z are others" in caplog.text


def test_moved_to_another_device_it_has_everything_there(clients):
    """Also its class means: images are pulled to them where the work is."""
    teacher = Teacher.build(clients, MEANS, unasked)
    assert teacher.taught.any()  # worked out before
    moved = teacher.to(torch.device("meta"))
    found = [moved.class_weights, moved.logit_scale, *moved.class_means]
    assert {value.device.type for value in found} == {"meta"} and moved.logit_shift is None
    visited = Teacher.build(clients, MEANS, unasked, torch.device("meta"))
    assert {value.device.type for value in visited.class_means} == {"meta"}
