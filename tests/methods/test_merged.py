"""The merged model as a row, as a student's start, and as one more member of the teacher."""

from dataclasses import replace

import pytest
import torch

from fedmitr_app.config import (
    DistillationConfig,
    GeneratorConfig,
    InversionConfig,
    MergeConfig,
    TeacherConfig,
)
from fedmitr_app.config.schema import COMBINATIONS
from fedmitr_app.merging import Mergeable, merge
from fedmitr_app.methods import METHODS, MethodSettings, Task
from fedmitr_app.methods.student import StudentTraining
from fedmitr_app.models import OffloadedViT
from fedmitr_app.teacher import priors_of
from fedmitr_app.uploads import Upload, read_class_means, set_class_means
from fedmitr_app.uploads.upload import save_state
from tests.helpers.tiny import CLASSES, random_images, tiny_vit

CPU = torch.device("cpu")
COUNTS = [(6, 4, 0, 0, 0), (0, 5, 15, 0, 0), (0, 0, 10, 20, 0)]
CLASS_WISE = MergeConfig(head="class-wise")


@pytest.fixture
def uploads(tmp_path):
    found, start = [], tiny_vit(40, torch.float32).vit.state_dict()
    for number, counts in enumerate(COUNTS):
        path = tmp_path / f"client-{number:03d}.safetensors"
        rng = torch.Generator().manual_seed(number)
        state = {
            name: value + 0.05 * torch.randn(value.shape, generator=rng)
            for name, value in start.items()
        }
        held = (torch.tensor(counts) > 0).float()
        for name in ("head.weight", "head.bias"):
            rows = held.reshape(-1, *[1] * (start[name].dim() - 1))
            state[name] = start[name] + rows * (state[name] - start[name] + 0.3)
        save_state({name: value.numpy() for name, value in state.items()}, path)
        found.append(Upload(path.stem, sum(counts), path, label_counts=counts))
    return found


def task_of(uploads, folder, merge=CLASS_WISE, merged=True, **teacher):
    settings = MethodSettings(
        TeacherConfig(probe_images=8, merged=merged, **teacher),
        InversionConfig(images=6, batch_size=4, iterations=3, stops=(0.5,), candidates=2),
        DistillationConfig(steps=4, batch_size=4),
        generator=GeneratorConfig(turns=1, steps=1, latent=8, width=8),
        merge=merge,
    )
    return Task.load(tiny_vit(40, torch.float32), uploads, settings, folder, CPU)


def with_class_means(task: Task, counts: torch.Tensor) -> Task:
    """Give the clients heads of class means, of so many images ``[K, C]``."""
    draws, states = torch.Generator().manual_seed(5), []
    for client, own in zip(task.clients, counts):
        vit, labels = client.model.vit, torch.repeat_interleave(torch.arange(CLASSES), own)
        with torch.no_grad():
            features = vit.norm(torch.randn(len(labels), 16, generator=draws))
        set_class_means(vit.head, features, labels, by_share=True)
        states.append(vit.state_dict())
    told = read_class_means(states, task.model.vit.state_dict())
    clients = [
        client._replace(shares=one.shares, class_means=one.means)
        for client, one in zip(task.clients, told, strict=True)
    ]
    return replace(task, clients=tuple(clients))


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], value) for name, value in other.items())


@pytest.mark.parametrize("knowledge", ["head-rows", "probed", "label-counts"])
@pytest.mark.parametrize("trunk", ["average", "ties"])
def test_the_row_and_the_students_start_are_the_merge(uploads, tmp_path, trunk, knowledge):
    config = MergeConfig(trunk, "class-wise", knowledge)
    task = task_of(uploads, tmp_path, config, merged=False)
    taken = Mergeable.of(uploads, task.model.vit.state_dict())
    expected = merge(taken, config, lambda: priors_of(task.probed))
    assert not same(expected, task.average)
    for state in (
        task.merged,
        METHODS["merged"](task).model.vit.state_dict(),
        StudentTraining(task, random_images(4, dtype=torch.float32)).model.vit.state_dict(),
    ):
        assert same(state, expected)


def test_without_an_upload_that_is_left_out_the_others_are_asked_what_they_know(uploads, tmp_path):
    task = task_of(uploads, tmp_path, MergeConfig(head="class-wise", knowledge="probed"))
    weighed = list(task.weight_checks)
    weighed[1] = weighed[1]._replace(unfit="whatever")
    task.remember(weight_checks=weighed)
    rest = [uploads[0], uploads[2]]
    taken = Mergeable.of(rest, task.model.vit.state_dict())
    expected = merge(taken, task.settings.merge, lambda: priors_of(task.probed[[0, 2]]))
    assert same(task.merged, expected)


def test_the_merged_member_is_a_client_that_holds_everything(uploads, tmp_path):
    plain, task = task_of(uploads, tmp_path, merged=False), task_of(uploads, tmp_path)
    assert plain.members == plain.clients and len(plain.teacher.models) == 3
    *clients, one = task.members
    assert clients == list(task.clients)
    assert one.num_examples == 60 and one.label_counts == (6, 9, 25, 20, 0)
    assert same(one.model.vit.state_dict(), task.merged)
    assert not any(parameter.requires_grad for parameter in one.model.parameters())
    silent = [uploads[0], replace(uploads[1], label_counts=None)]
    assert task_of(silent, tmp_path).members[-1].label_counts is None


@pytest.mark.parametrize("head", ["average", "cosine", "class-wise"])
def test_beside_heads_of_class_means_it_has_the_clients_shares(uploads, tmp_path, head, caplog):
    task = task_of(uploads, tmp_path, MergeConfig(head=head), combine="class-means")
    task = with_class_means(task, torch.tensor(COUNTS))
    shares = torch.tensor(COUNTS).sum(0) / 60
    torch.testing.assert_close(task.members[-1].shares, shares, atol=1e-4, rtol=0)
    assert task.teacher.combine == "class-means"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    torch.testing.assert_close(
        task.teacher.normalised_weights[-1, :4], torch.full((4,), 0.5), atol=1e-4, rtol=0
    )


def test_beside_another_head_it_counts_for_as_much_as_those_that_teach(uploads, tmp_path):
    task = with_class_means(task_of(uploads, tmp_path, combine="class-means"), torch.tensor(COUNTS))
    clients = list(task.clients)
    clients[2] = clients[2]._replace(num_examples=1000, shares=None, class_means=None)
    task = replace(task, clients=tuple(clients))
    assert task.members[-1].num_examples == sum(map(sum, COUNTS[:2]))
    weights = task.teacher.normalised_weights
    assert not weights[2].any()
    torch.testing.assert_close(weights[-1, :3], torch.full((3,), 0.5), atol=1e-4, rtol=0)


def test_heads_are_read_as_uploads_come(uploads, tmp_path):
    told = with_class_means(task_of(uploads, tmp_path), torch.tensor(COUNTS))
    sent = []
    for upload, client in zip(uploads, told.clients):
        path = tmp_path / f"means-{upload.client}.safetensors"
        arrays = {n: value.numpy() for n, value in client.model.vit.state_dict().items()}
        save_state(arrays, path)
        sent.append(replace(upload, weights=path))
    for client, one in zip(task_of(sent, tmp_path).clients, told.clients):
        assert torch.equal(client.shares, one.shares)
        assert torch.equal(client.class_means, one.class_means)
    assert [client.shares for client in task_of(uploads, tmp_path).clients] == [None] * 3


@pytest.mark.parametrize("flipped", [None, 1])
def test_heads_of_class_means_are_judged_by_what_they_say_of_their_classes(
    uploads, tmp_path, flipped
):
    """Small shares make small logits, which tell little: of one who holds every class above all."""
    task = task_of(uploads, tmp_path, combine="class-means")
    counts = torch.tensor([[20, 0, 0, 0, 1], [0, 5, 15, 0, 0], [4, 4, 4, 4, 4]])
    truth = torch.randn(1, 300, CLASSES, generator=torch.Generator().manual_seed(6))
    noise = torch.randn(3, 300, CLASSES, generator=torch.Generator().manual_seed(7))
    probed = 0.2 * (truth + 0.3 * noise)
    shares = counts / counts.sum(1, keepdim=True)
    if flipped is not None:
        probed[flipped] = probed[flipped].flip(-1) - 2 * probed[flipped]
    task = with_class_means(task, counts)
    task.remember(probed=shares.unsqueeze(1) * probed)
    found = [trust.reason for trust in task.trust]
    wrong = [] if flipped is None else [flipped]
    assert [number for number, reason in enumerate(found) if reason] == wrong
    unread = task_of(uploads, tmp_path, combine="mean-logits").remember(probed=task.probed)
    assert task.trust[2].information > 3 * unread.trust[2].information


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_every_combination_takes_it(uploads, tmp_path, combine):
    task = task_of(uploads, tmp_path, combine=combine, defence="clip")
    teacher = task.teacher
    # Heads that were trained hold no class means.
    assert teacher.combine == ("mean-logits" if combine == "class-means" else combine)
    assert len(teacher.models) == 4
    assert teacher.class_weights.shape == (4, CLASSES) and teacher.logit_scale.shape == (4,)
    images = random_images(3, dtype=torch.float32)
    logits = torch.stack([each.model(images).logits for each in task.members])
    torch.testing.assert_close(teacher(images).logits, teacher.combine_logits(logits))
    if combine == "num-examples":
        torch.testing.assert_close(
            teacher.normalised_weights[:, 0], torch.tensor([10, 20, 30, 60]) / 120
        )


@pytest.mark.parametrize("method", ["fedmitr", "dense", "co-boosting", "best-client", "ensemble"])
def test_methods_learn_from_it(uploads, tmp_path, method):
    records = []
    task = task_of(uploads, tmp_path / "with")
    task = replace(task, record=lambda stage, **values: records.append((stage, values)))
    found = METHODS[method](task)
    other = METHODS[method](task_of(uploads, tmp_path / "without", merged=False))
    images = random_images(5, dtype=torch.float32)
    if method != "best-client":
        assert len(found.teacher.models) == 4
        assert not torch.equal(found.predict(images), other.predict(images))
    if method == "co-boosting":
        told = {values["client"] for stage, values in records if stage == "ensemble"}
        assert told == {"client-000", "client-001", "client-002", "merged"}


@pytest.mark.parametrize("ensemble", ["loop", "stacked"])
def test_few_members_an_image_may_be_the_merged_one(uploads, tmp_path, ensemble):
    task = task_of(uploads, tmp_path)
    inversion = replace(task.settings.inversion, teachers_per_image=1, ensemble=ensemble)
    task = task.alter(lambda settings: replace(settings, inversion=inversion))
    assert METHODS["fedmitr"](task).images == 6


def test_it_visits_the_device_as_the_clients_do(uploads, tmp_path, monkeypatch):
    here = task_of(uploads, tmp_path)
    monkeypatch.setattr("fedmitr_app.methods.task.room_for", lambda size, device: False)
    task = task_of(uploads, tmp_path)
    assert all(type(member.model) is OffloadedViT for member in task.members)
    images = random_images(3, dtype=torch.float32)
    torch.testing.assert_close(task.teacher(images).logits, here.teacher(images).logits)


def test_another_merge_makes_another_teacher_of_the_same_uploads(uploads, tmp_path):
    task = task_of(uploads, tmp_path)
    kept = task.alter(lambda settings: replace(settings, seed=1))
    assert kept.teacher is task.teacher and kept.merged is task.merged
    other = task.alter(lambda settings: replace(settings, merge=MergeConfig()))
    assert other.weight_checks is task.weight_checks and other.origin != task.origin
    assert same(other.merged, task.average)
    assert same(other.teacher.models[-1].vit.state_dict(), task.average)
