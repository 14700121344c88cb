"""One round on a fake grid, without waiting."""

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp.exception import AggregationError

from tests.helpers.averaging import AveragingRound
from tests.helpers.fake_grid import (
    FakeGrid,
    good_content,
    record,
    reply,
    theta0,
)

QUICK = {"settle_seconds": 0.0, "poll_seconds": 0.0, "wait_for_nodes": 0.05}


def run(strategy, answer, nodes=(11, 12, 13), order=list, timeout=1.0, **start):
    grid = FakeGrid(nodes, answer, order)
    return strategy.start(grid, record(theta0()), timeout=timeout, **start)


def keyed(message, examples=10):
    """Node 11 is client-a with weights 1.0, 12 client-b with 2.0, ..."""
    number = message.metadata.dst_node_id - 10
    return reply(message, good_content(float(number), examples, f"client-{'zabcdef'[number]}"))


def stopped(folder, answer, nodes=(11, 12, 13)):
    """A round that was stopped with too few uploads to end it."""
    lacking = AveragingRound(run_dir=folder, min_clients=len(nodes) + 1, **QUICK)

    def answer_or_not(message):
        return answer(message) if message.metadata.dst_node_id in nodes else None

    with pytest.raises(AggregationError, match="usable upload"):
        run(lacking, answer_or_not, (*nodes, 77), timeout=0.2)


def real(nodes, answer):
    grid = FakeGrid(nodes, answer)
    grid.task_type = "flwr-serverapp"
    return grid


class Outage(FakeGrid):
    """Node 12 is out of reach for some looks; who asks for its reply then loses it."""

    looks = 0

    def out(self):
        self.looks += 1
        return 1 < self.looks <= 30

    def get_node_ids(self):
        return [11, 13] if self.out() else list(self.nodes)

    def pull_messages(self, message_ids):
        (key,) = message_ids
        message = self.pushed[key]
        if message.metadata.dst_node_id == 12 and self.out():
            del self.pushed[key]
            self.answered += 1
            return [Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)]
        return super().pull_messages(message_ids)
