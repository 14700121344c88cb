"""What building Flower messages outside a run needs."""

import pytest
from flwr.supercore.task_identity import TaskIdentity

from fedmitr_app.strategies import nodes, streaming_grid
from tests.helpers.fake_grid import Clock


@pytest.fixture(autouse=True)
def task_identity(monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Give what waits for nodes and replies a time that passes only while they sleep."""
    clock = Clock()
    for module in (streaming_grid, nodes):
        monkeypatch.setattr(module, "time", clock)
    return clock
