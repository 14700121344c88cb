"""A few clients on a fake Grid: whole runs of the real apps in this process."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from fedmitr_app import server_app
from fedmitr_app.client_app import app as client_app
from fedmitr_app.config import default_run_config
from fedmitr_app.strategies import OneShotStrategy
from tests.helpers.fake_grid import FakeGrid, context

CLIENTS = 3
# Sizes alone: nothing that a page of the documentation chooses.
TOY = {
    "client.epochs": 1,
    "client.device": "cpu",
    "server.device": "cpu",
    "server.wait-for-nodes": 1.0,
    "teacher.probe-images": 16,
    "inversion.images": 16,
    "inversion.batch-size": 8,
    "inversion.iterations": 6,
    "distillation.steps": 4,
    "distillation.batch-size": 8,
}
TINY = TOY | {
    "preset": "quick",
    "partition.alpha": 1.0,
    "data.max-train": 120,
    "data.max-test": 60,
    "model.depth": 1,
    "client.epochs": 2,
    "server.timeout": 60.0,
}


@dataclass
class Federation:
    """Three clients; ``spoil`` may change a client's reply, ``node`` its node config."""

    folder: Path
    spoil: Callable[[int, Message, Message], Message] | None = None
    order: Callable[[list[int]], list[int]] = list
    clients: int = CLIENTS
    task_type: str = "flwr-simulation"
    node: Callable[[int], dict[str, Any]] | None = None
    sizes: Mapping[str, Any] = field(default_factory=lambda: TINY)
    grid: FakeGrid | None = field(default=None, init=False)

    def run(self, **changes: Any) -> dict[str, Any]:
        """Do a run, return its metrics."""
        run_config = self.settings(**changes)

        def answer(message: Message) -> Message:
            number = message.metadata.dst_node_id - 11
            node = {"partition-id": number, "num-partitions": self.clients}
            node = self.node(number) if self.node else node
            reply = client_app(message, context(run_config, node))
            return self.spoil(number, message, reply) if self.spoil else reply

        self.grid = FakeGrid(range(11, 11 + self.clients), answer, self.order)
        self.grid.task_type = self.task_type
        self.grid.overrides = self.given(**changes)
        server_app.app(self.grid, context(run_config))
        return self.metrics()

    def given(self, **changes: Any) -> dict[str, Any]:
        """Return what a user would write after ``--run-config``."""
        return {**self.sizes, "output.run-dir": str(self.folder), **changes}

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Return the run config as Flower hands it over, fused with the defaults."""
        return {**default_run_config(), **self.given(**changes)}

    def metrics(self) -> dict[str, Any]:
        return json.loads((self.folder / "metrics.json").read_text())

    def measured(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").open()]

    def status(self) -> dict[str, Any]:
        return json.loads((self.folder / "status.json").read_text())


def without_processes(set_attribute: Callable[[Any, str, Any], object]) -> None:
    """Let the apps run where there are no Flower processes: nobody waits for nodes."""
    for name in ("_run_id", "_node_id", "_task_id"):
        set_attribute(TaskIdentity, name, 1)
    made = OneShotStrategy.__init__

    def without_waiting(self: OneShotStrategy, *what: Any, **settings: Any) -> None:
        made(self, *what, **settings, settle_seconds=0.0, poll_seconds=0.0)

    set_attribute(OneShotStrategy, "__init__", without_waiting)
