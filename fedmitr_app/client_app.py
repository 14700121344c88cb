"""The client: train once on its own shard, upload the weights once."""

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmitr_app.config import Config, parse_config
from fedmitr_app.errors import ConfigError, DataError, FedmitrError, ModelError, UploadError
from fedmitr_app.evaluation import HELD_OUT, TRAINED_ON, accuracy
from fedmitr_app.models import InputSpec, PatchViT, architecture_of, build_vit
from fedmitr_app.partitions import ImageSet, hold_out, load_shard
from fedmitr_app.randomness import generator
from fedmitr_app.reporting.environment import device_lines, resolve_device
from fedmitr_app.reporting.progress import Progress
from fedmitr_app.strategies.logs import join_flower_log
from fedmitr_app.strategies.records import (
    HAVE_KEY,
    METRICS_KEY,
    MOMENTS_KEY,
    UPLOAD_KEY,
    RecordKeys,
    key_digest,
    moments_record,
    records_of,
    to_array_record,
)
from fedmitr_app.training import class_moments, fit
from fedmitr_app.uploads.claims import check_client_key

_log = logging.getLogger(__name__)

KEYS = RecordKeys()

app = ClientApp()


@dataclass(frozen=True)
class Client:
    """Who this client is, and what it was told."""

    key: str
    partition_id: int
    num_partitions: int
    config: Config
    device: torch.device


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train θ₀ on this client's shard and reply with the weights."""
    return _reply(message, context, _train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the received model on this client's own images: its hold-out, if it has one."""
    return _reply(message, context, _evaluate)


def _reply(
    message: Message, context: Context, work: Callable[[Client, RecordDict], RecordDict]
) -> Message:
    join_flower_log()
    try:
        client = read_client(context)
        for line in device_lines(f"client {client.key}", client.device, torch.get_num_threads()):
            _log.info(line)
        content = work(client, message.content)
    except FedmitrError as error:
        # A reply, not an exception: the server shows the sentence, not a stack trace.
        _log.error("%s", error)
        content = _no_upload(client_key(context), "error", str(error))
    return Message(content, reply_to=message)


def client_key(context: Context) -> str:
    """Return this client's stable key: ``client-key`` of its node config, or its partition."""
    node = context.node_config
    if "client-key" in node:
        return str(node["client-key"])
    partition_id = node.get("partition-id")
    return f"client-{partition_id:03d}" if isinstance(partition_id, int) else ""


def read_client(context: Context) -> Client:
    """Return this client's identity and configuration.

    A node may have data of its own: ``data-path`` and ``data-source`` in its node
    config stand for ``data.path`` and ``data.source``. Without ``num-partitions`` that
    data isn't dealt out, all of it is the node's. ``max-seconds`` stands for
    ``client.max-seconds``.

    Raises
    ------
    ConfigError
        For an impossible run or node config.
    """
    node = context.node_config
    own = [name for name in ("path", "source") if f"data-{name}" in node]
    overrides = {f"data.{name}": node[f"data-{name}"] for name in own}
    if "max-seconds" in node:
        overrides["client.max-seconds"] = node["max-seconds"]
    config = parse_config({**context.run_config, **overrides})
    own_data = bool(own) and "num-partitions" not in node
    partition_id = _count(node, "partition-id", 0 if own_data and "client-key" in node else None)
    num_partitions = 1 if own_data else _count(node, "num-partitions", None)
    try:
        key = check_client_key(client_key(context))
    except UploadError as error:  # now, and not after its training
        raise ConfigError(f"The node config's {error}") from error
    if own_data:
        all_of_it = dataclasses.replace(config.partition, kind="iid", min_samples=0)
        # The server's test set is not here, and none is held out: client.holdout is for that.
        data = dataclasses.replace(config.data, test_path="", test_share=0.0)
        config = dataclasses.replace(config, partition=all_of_it, data=data)
    return Client(
        key=key,
        partition_id=0 if own_data else partition_id,
        num_partitions=num_partitions,
        config=config,
        device=resolve_device(config.client.device, "client.device"),
    )


def _train(client: Client, content: RecordDict) -> RecordDict:
    told = records_of(content, ConfigRecord).get(KEYS.config, {})
    if key_digest(client.key) in told.get(HAVE_KEY, []):
        _log.info("client %s has sent its upload before.", client.key)
        return _no_upload(client.key, "kept", "the server has its upload.")
    shard, _ = _load_shard(client, content)
    if len(shard) == 0:
        _log.info("client %s holds no data.", client.key)
        return _no_upload(client.key, "no-data", "its shard is empty.")
    model = _load_model(client, content)
    settings = client.config.client
    shared = {}
    if settings.share_moments:  # of θ₀'s features, so before training
        moments = class_moments(model, shard, device=client.device)
        shared[MOMENTS_KEY] = moments_record(moments)
    batches = math.ceil(len(shard) / settings.batch_size)
    steps, each = settings.epochs * batches, len(shard) / batches
    stage = f"client {client.key}: training"
    with Progress(stage, steps, "steps", images_per_unit=each) as progress:
        measured = fit(
            model,
            shard,
            settings,
            generator=generator(client.config.seed, client.key, "training"),
            device=client.device,
            on_step=lambda loss: progress.advance(loss=loss),
        )
    metrics = {name.replace("_", "-"): value for name, value in measured.items()}
    upload = {
        "client-key": client.key,
        "status": "ok",
        "architecture": json.dumps(architecture_of(model)),
        "input-spec": json.dumps(model.spec.to_dict()),
    }
    if settings.share_label_counts or settings.share_moments:  # moments hold them too
        counts = torch.bincount(shard.labels, minlength=model.num_classes).tolist()
        upload["label-counts"] = json.dumps(counts)
    return RecordDict(
        {
            **shared,
            KEYS.arrays: to_array_record(model.vit.state_dict()),
            METRICS_KEY: MetricRecord({**metrics, KEYS.weighted_by: len(shard)}),
            UPLOAD_KEY: ConfigRecord(upload),
        }
    )


def _evaluate(client: Client, content: RecordDict) -> RecordDict:
    trained_on, held = _load_shard(client, content)
    shard, name = (held, HELD_OUT) if len(held) else (trained_on, TRAINED_ON)
    if len(shard) == 0:
        return _no_upload(client.key, "no-data", "its shard is empty.")
    model = _load_model(client, content).to(client.device).eval()
    share = accuracy(
        lambda images: model(images).logits,
        shard.images,
        shard.labels,
        model.spec,
        device=client.device,
        batch_size=client.config.server.eval_batch_size,
    )
    metrics = {name: share, KEYS.weighted_by: len(shard)}
    return RecordDict({METRICS_KEY: MetricRecord(metrics)})


def _load_shard(client: Client, content: RecordDict) -> tuple[ImageSet, ImageSet]:
    """Return what this client trains on, and what it holds out."""
    config = client.config
    shard = load_shard(
        config.data, config.partition, client.partition_id, client.num_partitions, config.seed
    )
    told = records_of(content, ConfigRecord).get(KEYS.config, {}).get("class-names")
    shard = align_labels(shard, tuple(told)) if told else shard
    return hold_out(shard, config.client.holdout, config.seed, client.key)


def align_labels(shard: ImageSet, names: tuple[str, ...]) -> ImageSet:
    """Return the shard with its labels numbered as the server numbers its classes.

    A node's own folder may lack some classes, which would shift the others' numbers.

    Raises
    ------
    DataError
        If the shard has images of a class that the server doesn't know.
    """
    if shard.class_names == names:
        return shard
    present = set(shard.labels.tolist())
    unknown = [shard.class_names[label] for label in sorted(present)]
    unknown = [name for name in unknown if name not in names]
    if unknown:
        raise DataError(
            f"This client holds images of {', '.join(unknown[:5])}, which the server's model does "
            f"not know: its classes are {', '.join(names[:10])}."
        )
    numbers = [names.index(name) if name in names else -1 for name in shard.class_names]
    labels = torch.tensor(numbers, dtype=torch.int64)[shard.labels]
    return ImageSet(images=shard.images, labels=labels, class_names=names)


def _load_model(client: Client, content: RecordDict) -> PatchViT:
    arrays = records_of(content, ArrayRecord)[KEYS.arrays]
    data = client.config.data
    spec = InputSpec.of(data)
    # θ₀ comes with the message: a client needs no checkpoint of its own.
    from_scratch = dataclasses.replace(client.config.model, weights="")
    model = build_vit(from_scratch, spec, _num_classes(arrays), client.config.seed)
    try:
        model.vit.load_state_dict(arrays.to_torch_state_dict())
    except RuntimeError as error:
        name = client.config.model.name
        raise ModelError(
            f"The server's weights don't fit this client's model.name = {name!r}"
            f" ({str(error).splitlines()[-1].strip()}): give both the same model.* and data.* "
            "settings."
        ) from error
    return model


def _num_classes(arrays: ArrayRecord) -> int:
    if "head.weight" not in arrays:
        raise ModelError("The server's weights have no 'head.weight': it must send a timm ViT's.")
    return int(arrays["head.weight"].shape[0])


def _no_upload(key: str, status: str, reason: str) -> RecordDict:
    upload = {"status": status, "reason": reason}
    if key:
        upload["client-key"] = key
    return RecordDict(
        {
            METRICS_KEY: MetricRecord({KEYS.weighted_by: 0}),
            UPLOAD_KEY: ConfigRecord(upload),
        }
    )


def _count(node: dict[str, object], key: str, default: int | None) -> int:
    value = node.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"node-config {key} = {value!r} is not allowed: it must be a whole number of at least "
            f"0, as in --node-config 'partition-id=0 num-partitions=5'."
        )
    return value
