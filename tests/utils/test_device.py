"""Which device a process says it computes on, and what it says of an idle one."""

from pathlib import Path

import pytest
import torch

from fedmitr_app.errors import ConfigError
from fedmitr_app.utils import device
from fedmitr_app.utils.device import device_lines, resolve_device


def pretend(monkeypatch: pytest.MonkeyPatch, visible: list[str], installed: list[str]) -> None:
    monkeypatch.setattr(device, "visible_gpus", lambda: visible)
    monkeypatch.setattr(device, "installed_gpus", lambda: installed)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_auto_takes_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, [], [])
    assert resolve_device("auto", "server.device") == torch.device("cpu")
    pretend(monkeypatch, ["H200", "H200"], [])
    assert resolve_device("auto", "server.device") == torch.device("cuda", 0)
    assert resolve_device("cuda", "server.device") == torch.device("cuda", 0)
    assert resolve_device("cuda:1", "server.device") == torch.device("cuda", 1)
    assert resolve_device("cpu", "server.device") == torch.device("cpu")


@pytest.mark.parametrize(
    ("visible", "setting", "allowed"),
    [
        ([], "cuda", "'auto' or 'cpu'"),
        ([], "cuda:1", "'auto' or 'cpu'"),
        (["H200"], "cuda:1", "'auto', 'cpu' or 'cuda:0', because 1 GPU is visible"),
        (["H200"] * 2, "cuda:2", "'cuda:0' to 'cuda:1', because 2 GPUs are visible"),
        (["H200"], "tpu", "'auto', 'cpu', 'cuda' or 'cuda:N'"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, visible: list[str], setting: str, allowed: str
) -> None:
    pretend(monkeypatch, visible, visible)
    with pytest.raises(ConfigError) as refusal:
        resolve_device(setting, "client.device")
    assert f"client.device = {setting!r}" in str(refusal.value)
    assert allowed in str(refusal.value)


def test_one_line_when_nothing_is_wasted(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, [], [])
    assert device_lines("server", torch.device("cpu"), 2) == [
        "server: device cpu, 2 threads, no GPU visible"
    ]
    pretend(monkeypatch, ["H200"], ["H200"])
    assert device_lines("client 3", torch.device("cuda", 0), 1) == [
        "client 3: device cuda:0, 1 thread, visible GPUs: H200"
    ]


@pytest.mark.parametrize(
    ("role", "visible", "setting"),
    [
        ("server", ["H200"], "server.device = 'auto'"),
        ("client 3", ["H200"], "client.device = 'auto'"),
        ("client 3", [], "client-resources-num-gpus=1.0"),
        ("server", [], "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_an_idle_gpu_gets_a_line_with_the_setting(
    monkeypatch: pytest.MonkeyPatch, role: str, visible: list[str], setting: str
) -> None:
    pretend(monkeypatch, visible, ["H200"])
    lines = device_lines(role, torch.device("cpu"), 4)
    assert len(lines) == 2
    assert "H200" in lines[1]
    assert setting in lines[1]


def test_a_cpu_build_of_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, [], ["H200"])
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "built for CPUs only" in device_lines("client 0", torch.device("cpu"), 1)[1]


def test_the_driver_knows_gpus_that_are_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 18\n")
    assert device.installed_gpus(tmp_path) == ["NVIDIA H200"]
