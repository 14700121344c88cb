"""A method in another process: the same result, its lines and records, no harm when it fails."""

import importlib
import threading
import time
from dataclasses import replace
from multiprocessing import active_children

import pytest
import torch

from fedmitr_app.errors import RunFolderError
from fedmitr_app.methods import METHODS, Task, run_in_background
from tests.helpers.three_uploads import CPU, settings


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def task(theta0, uploads, tmp_path):
    return Task.load(theta0, uploads, settings(), tmp_path / "task", CPU)


@pytest.mark.usefixtures("two_threads")
def test_the_other_process_gives_what_this_one_gives(task, tmp_path, caplog):
    caplog.set_level("INFO", logger="fedmitr_app")
    heard, here = [], []
    telling = replace(task, label="aside: ", record=lambda stage, **v: heard.append((stage, v)))
    # Answers that asking the clients again would not give.
    told = task.probed.flip(0)
    telling.remember(probed=told)
    with run_in_background("fedmitr", telling) as result:
        assert torch.get_num_threads() == 1
        found = result()
    assert torch.get_num_threads() == 2
    alone = replace(task, folder=tmp_path / "alone", record=lambda s, **v: here.append((s, v)))
    alone.remember(probed=told)
    torch.set_num_threads(1)
    expected = METHODS["fedmitr"](alone)
    for name, value in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value)
    assert found.distillation_loss == expected.distillation_loss and found.images == 11
    assert found.teacher is None
    assert [stage for stage, _ in heard] == [stage for stage, _ in here]
    losses = [values["loss"] for stage, values in heard if stage == "distillation"]
    assert losses == pytest.approx(expected.distillation_loss)
    assert any(line.startswith("aside: distillation: 7 steps in") for line in caplog.messages)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_method_that_fails_costs_nothing_but_itself(task, caplog, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    diverging = task.alter(
        lambda ours: replace(ours, distillation=replace(ours.distillation, learning_rate=1e30))
    )
    try:
        with run_in_background("fedmitr", diverging) as result:
            assert result() is None
    finally:
        torch.set_num_threads(before)
    said = "'fedmitr' in the background gave nothing: distillation.learning-rate"
    assert said in caplog.text


@pytest.mark.usefixtures("two_threads")
def test_a_process_that_dies_is_told(task, caplog):
    with run_in_background("fedmitr", task) as result:
        (process,) = [child for child in active_children() if child.name == "background"]
        process.kill()
        assert result() is None
    assert "its process died" in caplog.text


@pytest.mark.usefixtures("two_threads")
def test_an_error_here_does_not_wait_for_the_other(task):
    slow = task.alter(
        lambda ours: replace(ours, distillation=replace(ours.distillation, steps=10**6))
    )
    started = time.monotonic()
    with pytest.raises(ValueError, match="here"), run_in_background("fedmitr", slow):
        raise ValueError("here")
    assert time.monotonic() - started < 60 and torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_nothing_is_recorded_once_it_is_over(task):
    """Who would write on then writes into a folder that may be another process's."""
    heard, recording = [], threading.Event()

    def record(stage, **values):
        recording.set()
        time.sleep(0.5)  # a slow disk
        heard.append(stage)

    told = replace(task, record=record)
    with pytest.raises(ValueError, match="here"), run_in_background("fedmitr", told):
        assert recording.wait(60)
        raise ValueError("here")
    assert not [thread for thread in threading.enumerate() if thread.name == "background"]
    assert heard


@pytest.mark.usefixtures("two_threads")
def test_a_full_disk_costs_nothing_but_the_method_in_the_background(task, caplog, monkeypatch):
    def full(path, *rest):
        raise RunFolderError(f"{path} cannot be written: No space left on device.")

    # The module, not the function of its name.
    module = importlib.import_module("fedmitr_app.methods.background")
    monkeypatch.setattr(module, "save_tensors", full)
    with run_in_background("fedmitr", task) as result:
        assert result() is None
    assert "gave nothing: " in caplog.text and "No space left" in caplog.text
