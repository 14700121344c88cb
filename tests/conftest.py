"""Whole runs in this process; and hypothesis on a busy machine."""

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.federation import Federation, without_processes

# Slow draws and slow calls say nothing about the code.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")


@pytest.fixture
def no_processes(monkeypatch):
    """No waiting for nodes, no identity of a Flower task, one thread."""
    without_processes(monkeypatch.setattr)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def federation(tmp_path, no_processes):
    """Three clients."""
    return Federation(tmp_path / "run")
