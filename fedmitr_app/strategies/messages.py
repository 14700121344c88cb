"""What nodes are sent, and which are told that their uploads are here already."""

from collections.abc import Mapping, Sequence

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedmitr_app.errors import ConfigError
from fedmitr_app.strategies.records import HAVE_KEY, key_digest, records_of

MARGIN = 3600.0
"""Seconds that a message lives beyond what its reply is waited for: Flower's own 12 hours would
end a longer round."""


def is_simulation(grid: Grid) -> bool:
    """Say whether Flower simulates the nodes: then it gave each its part of the server's data."""
    return getattr(grid.run, "primary_task_type", "") == "flwr-simulation"


def given_keys(grid: Grid) -> list[str]:
    """Return the keys that the user gave with ``flwr run --run-config``, sorted.

    The run config itself holds every key, given or not: Flower has fused it with the defaults.
    """
    return sorted(getattr(grid.run, "override_config", None) or {})


def uploads_here(
    grid: Grid, nodes: Sequence[int], here: Mapping[str, set[int]]
) -> dict[int, list[str]]:
    """Say for each node which uploads it needn't send again, by the digests of their keys.

    Parameters
    ----------
    nodes : Sequence[int]
        That are asked.
    here : Mapping[str, set[int]]
        Client key to the nodes that its uploads came from. Only these are told: who claimed
        another's key must not keep it from training. In a simulation, where all nodes have new
        ids in each run and nobody poses as another, everybody is.
    """
    simulated = is_simulation(grid)
    return {
        node: [key_digest(key) for key, came in sorted(here.items()) if simulated or node in came]
        for node in nodes
    }


def messages(
    content: RecordDict,
    config_key: str,
    nodes: Sequence[int],
    message_type: str,
    timeout: float,
    have: Mapping[int, list[str]] | None = None,
) -> list[Message]:
    """Return a message for each node; ``have`` is told to the node that it is about."""
    made = []
    for node in nodes:
        own = content
        if told := (have or {}).get(node):
            config = ConfigRecord({**records_of(content, ConfigRecord)[config_key], HAVE_KEY: told})
            own = RecordDict({**content, config_key: config})
        made.append(Message(own, node, message_type, ttl=timeout + MARGIN))
    return made


def needs_models(strategy: object, what: str) -> ConfigError:
    """Return the sentence for what hides the individual models from a strategy."""
    name = type(strategy).__name__
    return ConfigError(
        f"{name} fuses each client's model as it was sent, and {what} not hand them over so: "
        f"call {name}.start itself, and for differential privacy train with it on the clients."
    )
