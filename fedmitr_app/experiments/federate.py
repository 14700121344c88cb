"""Train a federation's clients in this process and spool their uploads, as a round would."""

import copy
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedmitr_app.config import Config, flatten
from fedmitr_app.errors import ConfigError
from fedmitr_app.experiments.grid import KEYS_OF_AXES, Cell, Federation
from fedmitr_app.models import InputSpec, PatchViT, architecture_of, build_vit
from fedmitr_app.partitions import class_names, hold_out, load_shard
from fedmitr_app.training import class_moments, fit
from fedmitr_app.uploads import Metadata, Spool, Upload, read_spool
from fedmitr_app.utils.randomness import generator

DECIDES_UPLOADS = ("seed", "data", "partition", "model", "client")


def initial_model(config: Config) -> PatchViT:
    """Build θ₀ as the server does."""
    data = config.data
    spec = InputSpec.of(data)
    return build_vit(config.model, spec, len(class_names(data)), config.seed)


def settings_of_uploads(config: Config) -> dict[str, Any]:
    """Return all settings that decide what clients upload, by run-config key."""
    flat = flatten(config)
    parts = {key: value for key, value in flat.items() if key.split(".")[0] in DECIDES_UPLOADS}
    # What a client may share beside its weights is always kept: rows take what they opt into.
    sharing = ("client.share-label-counts", "client.share-moments")
    for key in (*sharing, "client.device", "data.max-test", "data.test-path"):
        parts.pop(key)
    return parts


def trained_by(cells: Sequence[Cell]) -> list[str]:
    """Return in words how each cell's clients are trained, as far as rows differ in that.

    Empty where all rows are about the same uploads: the axes aside, no setting of theirs differs.
    """
    settings = [settings_of_uploads(cell.config) for cell in cells]
    common = settings[0]
    differing = [
        key
        for key in common
        if key not in KEYS_OF_AXES and any(one[key] != common[key] for one in settings)
    ]
    return [
        ", ".join(f"{key.removeprefix('client.')} {one[key]}" for key in differing)
        for one in settings
    ]


def uploads_name(federation: Federation, config: Config) -> str:
    """Return the folder name of a federation's uploads: another for every setting that counts."""
    parts = settings_of_uploads(config)
    text = json.dumps({**parts, **dataclasses.asdict(federation)}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    skew = "" if federation.alpha is None else f"-alpha{federation.alpha:g}"
    readable = f"{federation.kind}{skew}-clients{federation.clients}"
    return f"{readable}-seed{federation.seed}-{digest}"


def train_federation(
    federation: Federation, config: Config, folder: Path, device: torch.device
) -> None:
    """Train every client as ``flwr run`` would, one after the other, unless that was done.

    ``folder`` appears with all uploads in it, or not at all.
    """
    if folder.exists():
        return
    # A folder of its own: another experiment may be training the same.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _train_into(unfinished, federation, config, device)
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        # Another experiment was sooner.
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _train_into(folder: Path, federation: Federation, config: Config, device: torch.device) -> None:
    spool = Spool(folder, folder / "rejected")
    start = initial_model(config)
    for number in range(federation.clients):
        key = f"client-{number:03d}"
        shard = load_shard(
            config.data, config.partition, number, federation.clients, federation.seed
        )
        if len(shard) == 0:
            continue
        shard, _ = hold_out(shard, config.client.holdout, federation.seed, key)
        model = copy.deepcopy(start)
        moments = class_moments(model, shard, device=device)
        rng = generator(federation.seed, key, "training")
        metrics = fit(model, shard, config.client, generator=rng, device=device)
        arrays = {name: value.cpu().numpy() for name, value in model.vit.state_dict().items()}
        counts = shard.label_counts()
        claims = Metadata(
            num_examples=len(shard),
            client=key,
            architecture=architecture_of(model),
            input_spec=model.spec,
            label_counts=counts,
            metrics=metrics,
        )
        spool.add(arrays, claims, moments)


def load_uploads(folder: Path, config: Config) -> list[Upload]:
    """Return a federation's uploads, with only what its clients opt into sharing.

    Raises
    ------
    ConfigError
        If the folder is missing or empty, naming it.
    UploadError
        If a file in it is damaged.
    """
    uploads = read_spool(folder) if folder.is_dir() else []
    if not uploads:
        raise ConfigError(
            f"{folder} holds no uploads: train them (leave out --no-training), or give the folder "
            "of an experiment that has."
        )
    kept_back: dict[str, Any] = {}
    if not (config.client.share_label_counts or config.client.share_moments):
        kept_back["label_counts"] = None
    if not config.client.share_moments:
        kept_back["moments"] = ""
    return [replace(upload, **kept_back) for upload in uploads]
