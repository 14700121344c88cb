"""A Grid without processes: it answers messages by calling a function."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid

Answer = Callable[[Message], Any]


class FakeGrid(Grid):
    """Answer each message with what ``answer(message)`` returns.

    A Message is its reply; a list of them all come; None means no reply ever; an
    exception is raised whenever the reply is pulled. ``order`` gives the nodes' turns:
    a node's reply is ready once those before it have been pulled.
    """

    def __init__(
        self,
        nodes: Iterable[int],
        answer: Answer,
        order: Callable[[list[int]], list[int]] = list,
    ) -> None:
        self.nodes = list(nodes)
        self.answer = answer
        self.turns = {node: turn for turn, node in enumerate(order(self.nodes))}
        self.pulls = 0
        self.pushed: dict[str, Message] = {}
        self.sent: list[Message] = []
        self.answered = 0
        self.refuse: set[int] = set()
        self.task_type = "flwr-simulation"
        self.overrides: dict[str, Any] = {}

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[Any]:
        ids: list[Any] = []
        for message in messages:
            self.sent.append(message)
            node = message.metadata.dst_node_id
            if node in self.refuse:
                ids.append(None)
                continue
            key = f"message-{len(self.pushed)}"
            message.metadata.__dict__["_message_id"] = key
            self.pushed[key] = message
            ids.append(key)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.pulls += 1
        replies: list[Message] = []
        for key in list(message_ids):
            message = self.pushed.get(key)
            # The node whose turn it is answers; the others are not ready yet.
            if message is None or self.turns[message.metadata.dst_node_id] > self.answered:
                continue
            self.answered += 1
            answer = self.answer(message)
            if isinstance(answer, Exception):
                self.answered -= 1
                raise answer
            if answer is None:
                continue
            del self.pushed[key]
            replies.extend(answer if isinstance(answer, list) else [answer])
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        ids = self.push_messages(messages)
        replies: list[Message] = []
        for _ in ids:
            replies.extend(self.pull_messages(list(self.pushed)))
        return replies

    def set_run(self, run: Any) -> None:
        pass

    @property
    def run(self) -> Any:
        told = {"primary_task_type": self.task_type, "override_config": self.overrides}
        return SimpleNamespace(run_id=1, **told)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError


class Clock:
    """Stands for the module ``time``: it goes on only while somebody sleeps.

    So no test of a wait depends on how busy the machine is.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.01)  # a pause of nothing takes time too


class LateGrid(FakeGrid):
    """Node 13 answers a second after the round began, by its clock."""

    def __init__(self, clock: Clock, answer: Answer) -> None:
        super().__init__([11, 12, 13], answer)
        self.clock = clock

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        asked = [self.pushed[key].metadata.dst_node_id for key in message_ids]
        return [] if asked == [13] and self.clock.now < 1.0 else super().pull_messages(message_ids)


def theta0() -> dict[str, np.ndarray]:
    """A tiny state dict with a float matrix, a float scalar and an integer buffer."""
    return {
        "body.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "head.bias": np.zeros(2, dtype=np.float32),
        "scale": np.array(1.0, dtype=np.float32),
        "steps": np.array([3], dtype=np.int64),
    }


def record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def good_content(
    value: float, examples: Any = 10, key: str | None = None, **upload: Any
) -> RecordDict:
    """A right reply: every float is ``value``."""
    arrays = {
        name: np.full_like(array, value if array.dtype.kind == "f" else 3)
        for name, array in theta0().items()
    }
    content = RecordDict(
        {
            "arrays": record(arrays),
            "metrics": MetricRecord({"num-examples": examples, "train-loss": float(value)}),
        }
    )
    if key is not None:
        content["upload"] = ConfigRecord({"client-key": key, "status": "ok", **upload})
    return content


def reply(message: Message, content: RecordDict) -> Message:
    return Message(content, reply_to=message)


def failure(message: Message, reason: str, from_superlink: bool = False) -> Message:
    answer = Message(Error(2, reason), reply_to=message)
    if from_superlink:
        answer.metadata.__dict__["_src_node_id"] = 1
    return answer


def context(run_config: dict[str, Any], node_config: dict[str, Any] | None = None) -> Context:
    return Context(
        run_id=1,
        node_id=1,
        node_config=node_config or {},
        state=RecordDict(),
        run_config=run_config,
    )
