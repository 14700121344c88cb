"""What a run says about its machine."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from fedmitr_app.utils import environment
from fedmitr_app.utils.environment import describe_environment


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
        module = tmp_path / name / "fedmitr_app" / "utils" / "environment.py"
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
