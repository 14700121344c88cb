"""The client: train once on its own shard, upload the weights once."""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmitr_app.errors import FedmitrError
from fedmitr_app.evaluation import HELD_OUT, TRAINED_ON, accuracy
from fedmitr_app.models import (
    DECIDED_KEYS,
    InputSpec,
    PatchViT,
    architecture_of,
    model_from_weights,
)
from fedmitr_app.partitions import ImageSet, align_labels, clean_name, hold_out, load_shard
from fedmitr_app.strategies.client import Client, client_key, read_client
from fedmitr_app.strategies.logs import join_flower_log
from fedmitr_app.strategies.node_model import keep_model
from fedmitr_app.strategies.records import (
    GIVEN_KEY,
    HAVE_KEY,
    METRICS_KEY,
    MOMENTS_KEY,
    RECEIVED,
    SCORE_KEY,
    SIMULATED_KEY,
    UPLOAD_KEY,
    RecordKeys,
    key_digest,
    moments_record,
    records_of,
    server_config,
    to_array_record,
)
from fedmitr_app.training import class_moments, fit
from fedmitr_app.utils.device import device_lines
from fedmitr_app.utils.progress import SECONDS_BETWEEN_LINES, Progress, sign_of_life
from fedmitr_app.utils.randomness import generator
from fedmitr_app.utils.text import harmless

_log = logging.getLogger(__name__)

KEYS = RecordKeys()

_SIMULATED_SECONDS = 20.0

MANY_CLIENTS = 10
"""More simulated clients than this say nothing each: their server sums up."""

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train θ₀ on this client's shard and reply with the weights."""
    return _reply(message, context, _train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Keep the received model, if wanted; measure it on own images, a hold-out if there is one."""
    return _reply(message, context, _evaluate)


def _reply(
    message: Message, context: Context, work: Callable[[Client, RecordDict], RecordDict]
) -> Message:
    join_flower_log()
    try:
        told = server_config(message.content, KEYS)
        decided = {key: told[key] for key in DECIDED_KEYS if key in told}
        client = read_client(context, told.get(GIVEN_KEY, []), decided)
        simulated = _is_simulated(message.content)
        with _manner_of(client, simulated):
            lines = device_lines(f"client {client.key}", client.device, torch.get_num_threads())
            # One of a simulation's says it with its images, and repeats no advice of the server's.
            for line in lines[1:] if simulated else lines:
                _log.info(line)
            content = work(client, message.content)
    except FedmitrError as error:
        # A reply, not an exception: the server shows the sentence, not a stack trace.
        _log.error("%s", error)
        content = _no_upload(client_key(context), "error", error.public)
    except Exception as error:
        # Flower would send the exception's text, which may name files or quote data.
        _log.exception("client %s failed.", client_key(context))
        reason = f"its ClientApp failed ({type(error).__name__}): its own log says why."
        content = _no_upload(client_key(context), "error", reason)
    return Message(content, reply_to=message)


@contextlib.contextmanager
def _manner_of(client: Client, simulated: bool) -> Iterator[None]:
    """Log as it suits: a node of its own says all, one of many simulated ones only what is wrong.

    In a simulation the server's log has a line for each upload, and says that it waits.
    """
    if not simulated:
        with sign_of_life():
            yield
        return
    logger = logging.getLogger("fedmitr_app")
    before = logger.level
    if client.num_partitions > MANY_CLIENTS:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _is_simulated(content: RecordDict) -> bool:
    return bool(server_config(content, KEYS).get(SIMULATED_KEY, False))


def _train(client: Client, content: RecordDict) -> RecordDict:
    if key_digest(client.key) in server_config(content, KEYS).get(HAVE_KEY, []):
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
    simulated = _is_simulated(content)
    every = _SIMULATED_SECONDS if simulated else SECONDS_BETWEEN_LINES
    ends = not simulated  # of which the server says the same
    with Progress(
        stage,
        steps,
        "steps",
        images_per_unit=each,
        every_seconds=every,
        opening=ends,
        closing=ends,
    ) as progress:
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
            UPLOAD_KEY: ConfigRecord({**upload}),
        }
    )


def _evaluate(client: Client, content: RecordDict) -> RecordDict:
    told = server_config(content, KEYS)
    model, problem = _load_model(client, content), ""
    if client.model_dir is not None:
        try:
            kept = keep_model(client.model_dir, client.run_id, model, told.get("class-names", []))
            _log.info("The global model is in %s.", harmless(kept))
        except FedmitrError as error:
            _log.error("%s", error)
            problem = "it could not keep the global model: its log says why."
    if not told.get(SCORE_KEY, True):
        return _no_upload(client.key, "error" if problem else RECEIVED, problem)
    trained_on, held = _load_shard(client, content)
    shard, name = (held, HELD_OUT) if len(held) else (trained_on, TRAINED_ON)
    if len(shard) == 0:
        return _no_upload(client.key, "no-data", "its shard is empty.")
    model = model.to(client.device).eval()
    share = accuracy(
        lambda images: model(images).logits,
        shard.images,
        shard.labels,
        model.spec,
        device=client.device,
        batch_size=client.config.server.eval_batch_size,
    )
    _log.info("client %s: %s of %d images is %.3f.", client.key, name, len(shard), share)
    metrics = MetricRecord({name: share, KEYS.weighted_by: len(shard)})
    upload = ConfigRecord({"client-key": client.key, "status": "ok", "reason": problem})
    return RecordDict({METRICS_KEY: metrics, UPLOAD_KEY: upload})


def _load_shard(client: Client, content: RecordDict) -> tuple[ImageSet, ImageSet]:
    """Return what this client trains on, and what it holds out."""
    config = client.config
    shard = load_shard(
        config.data, config.partition, client.partition_id, client.num_partitions, config.seed
    )
    told = server_config(content, KEYS).get("class-names")
    _log.info(_data_line(client, shard, _is_simulated(content)))
    shard = align_labels(shard, tuple(map(clean_name, told))) if told else shard
    trained_on, held = hold_out(shard, config.client.holdout, config.seed, client.key)
    if len(held):
        _log.info("client %s: %d of them held out (client.holdout).", client.key, len(held))
    return trained_on, held


def _data_line(client: Client, shard: ImageSet, simulated: bool) -> str:
    """Say what a client has; in a simulation the server has said what its data are part of."""
    if not simulated:
        return f"client {client.key}: {shard.read}"
    threads = torch.get_num_threads()
    classes = sum(count > 0 for count in shard.label_counts())
    return (
        f"client {client.key}: device {client.device}, {threads} thread{'s' * (threads != 1)}, "
        f"{len(shard)} images of {classes} classes"
    )


def _load_model(client: Client, content: RecordDict) -> PatchViT:
    state = records_of(content, ArrayRecord)[KEYS.arrays].to_torch_state_dict()
    config = client.config
    return model_from_weights(state, config.model, InputSpec.of(config.data), config.seed)


def _no_upload(key: str, status: str, reason: str) -> RecordDict:
    upload = {"status": status, "reason": reason}
    if key:
        upload["client-key"] = key
    return RecordDict(
        {
            METRICS_KEY: MetricRecord({KEYS.weighted_by: 0}),
            UPLOAD_KEY: ConfigRecord({**upload}),
        }
    )
