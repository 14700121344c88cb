"""Who a client is, what it was told, and which images are its own."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context

from fedmitr_app.config import Config, check_source, given_settings, parse_config
from fedmitr_app.errors import ConfigError, UploadError
from fedmitr_app.strategies.node_model import model_dir
from fedmitr_app.uploads.metadata import check_client_key
from fedmitr_app.utils.device import resolve_device


@dataclass(frozen=True)
class Client:
    """Who this client is, and what it was told."""

    key: str
    partition_id: int
    num_partitions: int
    config: Config
    device: torch.device
    run_id: int
    model_dir: Path | None
    """Where it keeps the global model, if its owner wants it to."""


def client_key(context: Context) -> str:
    """Return this client's stable key: ``client-key`` of its node config, or its partition."""
    node = context.node_config
    if "client-key" in node:
        return str(node["client-key"])
    partition_id = node.get("partition-id")
    return f"client-{partition_id:03d}" if isinstance(partition_id, int) else ""


def read_client(
    context: Context, given: Sequence[str] = (), decided: Mapping[str, Any] | None = None
) -> Client:
    """Return this client's identity and configuration.

    ``given`` names the settings that the user gave, as the server says: they win over the preset.
    ``decided`` are settings in which everybody follows the server: what 'auto' came to there.

    A node may have data of its own: ``data-path`` and ``data-source`` in its node
    config stand for ``data.path`` and ``data.source``. Without ``num-partitions`` that
    data isn't dealt out, all of it is the node's. ``max-seconds`` stands for
    ``client.max-seconds``; ``model-dir`` is where the node keeps the global model.

    Raises
    ------
    ConfigError
        For an impossible run or node config.
    """
    node = context.node_config
    if not {"data-path", "data-source", "partition-id"} & set(node):
        raise ConfigError(
            "This node has no images: its node config must name its own (data-source and "
            "data-path), or its part of the run's (partition-id and num-partitions)."
        )
    own = [name for name in ("path", "source") if f"data-{name}" in node]
    overrides = {f"data.{name}": node[f"data-{name}"] for name in own}
    if "max-seconds" in node:
        overrides["client.max-seconds"] = node["max-seconds"]
    run = {**given_settings(context.run_config, given), **(decided or {})}
    config = _configured(run, overrides)
    if "data-path" in node and config.data.source not in ("image-folder", "parquet"):
        raise ConfigError(
            f"node-config data-path = {node['data-path']!r} needs data-source = 'image-folder' or "
            f"'parquet' beside it: {config.data.source!r} reads no path.",
            public="its node-config data-path needs data-source = 'image-folder' or 'parquet' "
            "beside it.",
        )
    own_data = bool(own) and "num-partitions" not in node
    partition_id = _count(node, "partition-id", 0 if own_data and "client-key" in node else None)
    num_partitions = 1 if own_data else _count(node, "num-partitions", None)
    try:
        key = check_client_key(client_key(context))
    except UploadError as error:  # now, and not after its training
        raise ConfigError(
            f"The node config's {error}", public="its node-config client-key can't be one."
        ) from error
    if own_data:
        all_of_it = dataclasses.replace(config.partition, kind="iid", min_samples=0)
        # The server's test set is not here, and none is held out: client.holdout is for that.
        data = dataclasses.replace(config.data, test_path="", test_share=0.0)
        config = dataclasses.replace(config, partition=all_of_it, data=data)
    _require_source(config, bool(own))
    return Client(
        key=key,
        partition_id=0 if own_data else partition_id,
        num_partitions=num_partitions,
        config=config,
        device=resolve_device(config.client.device, "client.device"),
        run_id=context.run_id,
        model_dir=model_dir(node.get("model-dir", "")),
    )


def _configured(run: dict[str, Any], own: dict[str, Any]) -> Config:
    """Return the run's settings with a node's own, whose values are nobody else's business."""
    try:
        return parse_config({**run, **own})
    except ConfigError as error:
        if not own:
            raise
        raise ConfigError(
            str(error),
            public=f"the run's settings and its node config ({', '.join(own)}) don't go together: "
            "its own log says why.",
        ) from error


def _require_source(config: Config, own: bool) -> None:
    """Check the data that this node is to read: a server without data didn't look at them."""
    try:
        check_source(config)
    except ConfigError as error:
        if own or config.server.test_set:
            raise
        raise ConfigError(
            "This node has no images of its own (data-source and data-path in its node config), "
            f"and of the run's: {error}"
        ) from error


def _count(node: Mapping[str, object], key: str, default: int | None) -> int:
    value = node.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"node-config {key} = {value!r} is not allowed: it must be a whole number of at least "
            f"0, as in --node-config 'partition-id=0 num-partitions=5'.",
            public=f"its node-config {key} must be a whole number of at least 0.",
        )
    return value
