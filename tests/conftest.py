"""Whole runs in this process; and hypothesis and Ray on a busy machine."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from fedmitr_app.errors import ConfigError
from fedmitr_app.models import require_compiler
from tests.helpers.federation import Federation, without_processes

# Slow draws and slow calls say nothing about the code.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")
# Ray lets everything else go before its workers: beside the other tests they'd hardly begin.
os.environ["RAY_worker_niceness"] = "0"
# A process that has left a Ray may be ended by it a minute later, in the middle of another test.
os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "86400"
# Models this small are no faster on two, and far slower when something else runs beside them.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that no worker ends alone with one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def same_draws_in_any_order():
    """What a test leaves to torch's own generator doesn't hang on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def compiler():
    """Only where torch can compile."""
    try:
        require_compiler(torch.device("cpu"))
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture
def no_processes(monkeypatch):
    """No waiting for nodes, no identity of a Flower task."""
    without_processes(monkeypatch.setattr)


@pytest.fixture
def federation(tmp_path, no_processes):
    """Three clients."""
    return Federation(tmp_path / "run")
