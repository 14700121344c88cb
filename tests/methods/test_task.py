"""How uploads become models."""

import copy
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedmitr_app.config import ModelConfig
from fedmitr_app.methods import MethodSettings, Task
from fedmitr_app.models import InputSpec, PatchViT, build_vit
from fedmitr_app.uploads import Upload

STATUS = Path("/proc/self/status")
CPU = torch.device("cpu")


def held() -> float:
    """MiB of this process that are not files."""
    return int(re.search(r"RssAnon:\s+(\d+)", STATUS.read_text())[1]) / 1024


def uploads_of(model: PatchViT, count: int, folder: Path) -> list[Upload]:
    made = []
    for number in range(count):
        path = folder / f"{number}.safetensors"
        save_file({key: value + number for key, value in model.vit.state_dict().items()}, path)
        made.append(Upload(f"client-{number}", 100, path))
    return made


def model_of(width: int) -> PatchViT:
    config = ModelConfig(width=width, heads=4)
    return build_vit(config, InputSpec(28, 1, (0.5,), (0.5,)), 10, 0)


@pytest.mark.skipif(not STATUS.exists(), reason="memory is told apart on Linux alone")
def test_a_cpu_holds_what_is_in_use_not_every_clients_weights(tmp_path):
    model = model_of(320)
    size = sum(value.nbytes for value in model.vit.state_dict().values()) / 2**20
    uploads = uploads_of(model, 16, tmp_path)
    before = held()
    task = Task.load(model, uploads, MethodSettings(), tmp_path, CPU)
    with torch.inference_mode():
        for client in task.clients:
            client.model(torch.zeros(2, 1, 28, 28))
    assert size > 12
    assert held() - before < 4 * size  # of 16


def test_the_models_are_the_uploads_and_frozen(tmp_path):
    model = model_of(32)
    before = copy.deepcopy(model.vit.state_dict())
    task = Task.load(model, uploads_of(model, 3, tmp_path), MethodSettings(), tmp_path, CPU)
    for number, client in enumerate(task.clients):
        state = client.model.vit.state_dict()
        assert all(torch.equal(state[key], before[key] + number) for key in before)
        assert not any(parameter.requires_grad for parameter in client.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.vit.state_dict().items())
