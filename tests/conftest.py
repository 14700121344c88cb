"""Whole runs in this process; and hypothesis on a busy machine."""

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, settings

from fedmitr_app.strategies import OneShotStrategy
from tests.federation import Federation

# Slow draws and slow calls say nothing about the code.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")


@pytest.fixture
def no_processes(monkeypatch):
    """No waiting for nodes, no identity of a Flower task, one thread."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    made = OneShotStrategy.__init__

    def without_waiting(self, **settings):
        made(self, **settings, settle_seconds=0.0, poll_seconds=0.0)

    monkeypatch.setattr(OneShotStrategy, "__init__", without_waiting)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def federation(tmp_path, no_processes):
    """Three clients."""
    return Federation(tmp_path / "run")
