"""How uploads become models."""

import copy
import logging
import re
from pathlib import Path

import pytest
import torch

from fedmitr_app.config import DistillationConfig, InversionConfig, ModelConfig, TeacherConfig
from fedmitr_app.experiments.attacks import attack
from fedmitr_app.methods import METHODS, MethodSettings, Task, fedmitr
from fedmitr_app.models import InputSpec, OffloadedViT, PatchViT, build_vit
from fedmitr_app.uploads import Upload
from fedmitr_app.uploads.upload import ALIGNMENT, save_state
from fedmitr_app.utils.memory import room_for
from tests.helpers.plain_merges import average
from tests.helpers.tiny import tiny_vit

STATUS = Path("/proc/self/status")
CPU = torch.device("cpu")


def held() -> float:
    """MiB of this process that are not files."""
    return int(re.search(r"RssAnon:\s+(\d+)", STATUS.read_text())[1]) / 1024


def uploads_of(model: PatchViT, count: int, folder: Path) -> list[Upload]:
    made = []
    for number in range(count):
        path = folder / f"{number}.safetensors"
        state = model.vit.state_dict()
        save_state({key: (value + number).numpy() for key, value in state.items()}, path)
        made.append(Upload(f"client-{number}", 100, path))
    return made


def model_of(width: int) -> PatchViT:
    config = ModelConfig(width=width, heads=4)
    return build_vit(config, InputSpec(28, 1, (0.5,), (0.5,)), 10, 0)


@pytest.mark.skipif(not STATUS.exists(), reason="memory is told apart on Linux alone")
def test_a_cpu_holds_what_is_in_use_not_every_clients_weights(tmp_path):
    model = model_of(384)
    size = sum(value.nbytes for value in model.vit.state_dict().values()) / 2**20
    uploads = uploads_of(model, 16, tmp_path)
    before = held()
    task = Task.load(model, uploads, MethodSettings(), tmp_path, CPU)
    with torch.inference_mode():
        for client in task.clients:
            client.model(torch.zeros(2, 1, 28, 28))
    assert size > 12
    assert held() - before < 4 * size  # of 16


@pytest.mark.parametrize("rows", [1, 3, 5, 7])
@pytest.mark.parametrize("width", [32, 40, 64])
def test_mapped_weights_answer_as_copies_do_to_the_last_bit(tmp_path, width, rows):
    """Products of few rows depend on where the weights lie: a Ray worker has copies."""
    uploads = uploads_of(model_of(width), 3, tmp_path)
    task = Task.load(model_of(width), uploads, MethodSettings(), tmp_path, CPU)
    images = torch.rand(rows, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for client in task.clients:
        state = client.model.vit.state_dict()
        assert all(value.data_ptr() % ALIGNMENT == 0 for value in state.values())
        with torch.no_grad():
            copied = copy.deepcopy(client.model)(images).logits
            assert torch.equal(client.model(images).logits, copied)


def test_without_room_on_the_device_weights_stay_and_the_student_is_the_same(
    tmp_path, monkeypatch, caplog
):
    model = tiny_vit(40, torch.float32)
    uploads = uploads_of(model, 3, tmp_path)
    settings = MethodSettings(
        TeacherConfig(probe_images=8),
        InversionConfig(images=6, batch_size=6, iterations=4, gradient="frugal"),
        DistillationConfig(steps=4, batch_size=4),
    )
    plain = fedmitr(Task.load(model, uploads, settings, tmp_path / "plain", CPU))
    monkeypatch.setattr("fedmitr_app.methods.task.room_for", lambda size, device: False)
    caplog.set_level(logging.INFO)
    task = Task.load(model, uploads, settings, tmp_path / "visiting", CPU)
    assert all(type(client.model) is OffloadedViT for client in task.clients)
    assert "cpu has no room for 0.0 GiB of clients' weights" in caplog.text
    found = fedmitr(task).model.state_dict()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(found[name], value)


def test_the_rounded_copies_of_half_width_models_take_room_too(tmp_path, monkeypatch):
    model, asked = tiny_vit(40, torch.float32), []
    uploads = uploads_of(model, 3, tmp_path)
    monkeypatch.setattr(
        "fedmitr_app.methods.task.room_for", lambda size, device: asked.append(size) or True
    )
    for model.precision in ("float32", "bfloat16"):
        Task.load(model, uploads, MethodSettings(), tmp_path, CPU)
    assert asked[1] == asked[0] * 3 // 2 > 0


def test_half_of_a_gpus_free_memory_may_hold_weights(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    gpu = torch.device("cuda:1")
    assert room_for(500, gpu) and not room_for(501, gpu)
    assert room_for(10**15, CPU)


def test_the_models_are_the_uploads_and_frozen(tmp_path):
    model = model_of(32)
    before = copy.deepcopy(model.vit.state_dict())
    task = Task.load(model, uploads_of(model, 3, tmp_path), MethodSettings(), tmp_path, CPU)
    for number, client in enumerate(task.clients):
        state = client.model.vit.state_dict()
        assert all(torch.equal(state[key], before[key] + number) for key in before)
        assert not any(parameter.requires_grad for parameter in client.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.vit.state_dict().items())


def honest_uploads(model: PatchViT, count: int, folder: Path, step: float = 0.02) -> list[Upload]:
    """Uploads that were trained apart, so to say: θ₀ and a step of one's own."""
    folder.mkdir(exist_ok=True)
    made = []
    for number in range(count):
        path, rng = folder / f"{number}.safetensors", torch.Generator().manual_seed(number)
        state = {
            key: value + step * torch.randn(value.shape, generator=rng)
            for key, value in model.vit.state_dict().items()
        }
        save_state({key: value.numpy() for key, value in state.items()}, path)
        made.append(Upload(f"client-{number}", 100 + number, path, digest=str(number)))
    return made


def attacked(name, model, count, folder, attackers=1):
    """A task, its uploads' honest part, and who attacks."""
    folder.mkdir(exist_ok=True)
    uploads, start = honest_uploads(model, count, folder), model.vit.state_dict()
    sent = attack(uploads, name, attackers, start, folder, 0)
    settings = MethodSettings(TeacherConfig(probe_images=32))
    task = Task.load(model, sent, settings, folder, CPU)
    rest = [one for one, other in zip(uploads, sent) if one is other]
    return task, rest, [each.client for each in uploads if each not in rest]


@pytest.mark.parametrize("defence", ["none", "clip", "leave-one-out"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_honest_uploads_are_averaged_as_ever_to_the_last_bit(tmp_path, count, defence):
    model = model_of(64)
    uploads = honest_uploads(model, count, tmp_path, 0.002)
    settings = MethodSettings(TeacherConfig(probe_images=32, defence=defence))
    task = Task.load(model, uploads, settings, tmp_path, CPU)
    expected = average(uploads, settings.weighting)
    fused = METHODS["fedavg"](task).model.vit.state_dict()
    for found in (task.average, task.merged, fused):
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", ["permuted-channels", "mild-spike"])
def test_what_ruins_an_average_is_in_none_and_teaches_all_the_same(tmp_path, caplog, name):
    task, rest, (guilty,) = attacked(name, model_of(64), 4, tmp_path)
    defended = task.defended()
    assert [client.key for client in defended.clients] == [each.client for each in task.uploads]
    assert f"{guilty} is suspicious, and stays all the same" in caplog.text
    assert "so that no average of weights takes it" in caplog.text
    for method, weighting in (("fedavg", "num-examples"), ("fedavg-uniform", "uniform")):
        found = METHODS[method](defended).model.vit.state_dict()
        expected = average(rest, weighting)
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert all(torch.equal(defended.merged[key], value) for key, value in average(rest).items())


def test_what_was_scaled_is_averaged_as_if_it_never_had_been(tmp_path, caplog):
    model = model_of(64)
    task, _, (guilty,) = attacked("same-function-norms", model, 4, tmp_path)
    honest = average(honest_uploads(model, 4, tmp_path / "a"))
    defended = task.defended()
    assert len(defended.clients) == 4
    assert f"{guilty} is suspicious, and stays all the same" in caplog.text
    assert "so that averages of weights scale it back" in caplog.text
    for key, value in honest.items():
        assert (defended.average[key] - value).norm() < 0.25 * value.norm()


@pytest.mark.parametrize("name", ["permuted-channels", "same-function-head"])
def test_a_strict_defence_does_without_them(tmp_path, name):
    task, _, (guilty,) = attacked(name, model_of(64), 4, tmp_path)
    strict = MethodSettings(TeacherConfig(probe_images=32, defence="leave-one-out"))
    kept = task.alter(lambda _: strict).defended()
    assert guilty not in [client.key for client in kept.clients]


@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("attackers", [1, 2])
def test_a_copy_teaches_once_also_in_another_order(tmp_path, caplog, attackers, reordered):
    model = model_of(64)
    task, rest, guilty = attacked("near-copy", model, 5, tmp_path, attackers)
    if reordered:  # the copies' units and channels, each in an order of its own
        uploads = {each.client: each for each in rest}
        for client, upload in zip([c.key for c in task.clients], task.uploads):
            if client in guilty:
                folder = tmp_path / client
                folder.mkdir()
                start = model.vit.state_dict()
                other = Upload("client-x", 1, rest[0].weights)
                sent = attack([upload, other], "permuted-channels", 1, start, folder, 0)
                sent += attack([other, upload], "permuted-channels", 1, start, folder, 0)
                uploads[client] = next(
                    each for each in sent if each.client == client and each is not upload
                )
        sent = [uploads[client.key] for client in task.clients]
        task = Task.load(model, sent, task.settings, tmp_path, CPU)
    kept = [client.key for client in task.defended().clients]
    assert len(kept) == 5 - attackers
    honest = {each.client for each in rest}
    # Of the same model one stays: the one that averages can take, or else the first.
    assert len(honest - set(kept)) <= (0 if reordered else 1)
    assert "and left out: its model, or most of it, is that of 'client-" in caplog.text


@pytest.mark.parametrize("attackers", [1, 2])
def test_of_a_copy_and_one_with_another_head_the_whole_one_stays(tmp_path, attackers):
    task, rest, _ = attacked("permuted-copy", model_of(64), 5, tmp_path, attackers)
    kept = [client.key for client in task.defended().clients]
    assert kept == [each.client for each in rest]


def test_models_that_were_hardly_trained_are_no_copies(tmp_path):
    model = model_of(64)
    uploads = honest_uploads(model, 3, tmp_path, 1e-6)
    task = Task.load(model, uploads, MethodSettings(TeacherConfig(probe_images=32)), tmp_path, CPU)
    assert len(task.defended().clients) == 3


def test_without_anything_to_average_it_is_what_everybody_began_with(tmp_path):
    model = model_of(64)
    task = Task.load(model, honest_uploads(model, 2, tmp_path), MethodSettings(), tmp_path, CPU)
    task.remember(weight_checks=[each._replace(unfit="whatever") for each in task.weight_checks])
    assert all(
        torch.equal(task.average[key], value) for key, value in model.vit.state_dict().items()
    )
