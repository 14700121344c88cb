"""What a run says about its machine."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from fedmitr_app.errors import ConfigError
from fedmitr_app.reporting import describe_environment, device_lines, environment, resolve_device


def pretend(monkeypatch: pytest.MonkeyPatch, visible: list[str], installed: list[str]) -> None:
    monkeypatch.setattr(environment, "visible_gpus", lambda: visible)
    monkeypatch.setattr(environment, "installed_gpus", lambda: installed)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_the_description_is_json_and_complete() -> None:
    described = describe_environment()
    assert json.loads(json.dumps(described)) == described
    assert described["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert described["threads"] == torch.get_num_threads()
    assert described["cores"] >= 1
    assert described["cpu"]


def test_the_commit_is_the_packages_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    module = tmp_path / "environment.py"
    module.write_text("")
    monkeypatch.setattr(environment, "__file__", str(module))
    assert environment._commit(tmp_path) is None  # no git here

    git("init", "-q")
    (tmp_path / "other.txt").write_text("")
    git("add", "other.txt")
    git("commit", "-qm", "somebody else's project around an installed copy")
    assert environment._commit(tmp_path) is None

    git("add", "environment.py")
    git("commit", "-qm", "our own")
    assert environment._commit(tmp_path) == {"id": git("rev-parse", "HEAD"), "dirty": False}
    module.write_text("# changed")
    assert environment._commit(tmp_path)["dirty"] is True


def test_a_copy_that_flower_made_has_the_commit_of_what_it_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tree(name: str) -> Path:
        module = tmp_path / name / "fedmitr_app" / "reporting" / "environment.py"
        module.parent.mkdir(parents=True)
        module.write_text("same = True")
        return module

    class Installed:
        def read_text(self, name: str) -> str | None:
            return {"direct_url.json": json.dumps(origin)}.get(name)

    original, copy = tree("my project"), tree("apps")
    origin = {"url": (tmp_path / "my project").as_uri(), "dir_info": {"editable": True}}
    found = {original.parent: {"id": "abc", "dirty": False}}
    monkeypatch.setattr(environment, "__file__", str(copy))
    monkeypatch.setattr(environment, "_commit", found.get)
    monkeypatch.setattr(environment.metadata, "distribution", lambda name: Installed())
    assert environment._commit_of_the_original() == {"id": "abc", "dirty": False}

    original.write_text("same = False")
    assert environment._commit_of_the_original() is None
    origin = {"url": "https://example.org/wheel", "archive_info": {}}
    assert environment._commit_of_the_original() is None


def test_a_machine_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("git", 5)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert environment._commit(Path.cwd()) is None


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
    assert environment.installed_gpus(tmp_path) == ["NVIDIA H200"]
