"""What the benchmarks share: uploads trained in this process, and what they ran on."""

import copy
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from fedmitr_app.config import Config
from fedmitr_app.models import InputSpec, PatchViT, build_vit
from fedmitr_app.partitions import class_names, load_shard
from fedmitr_app.randomness import generator
from fedmitr_app.reporting.environment import describe_environment
from fedmitr_app.training import fit
from fedmitr_app.uploads import Upload


def initial_model(config: Config) -> PatchViT:
    """Build θ₀ as the server does."""
    data = config.data
    spec = InputSpec(data.image_size, data.channels, data.mean, data.std)
    return build_vit(config.model, spec, len(class_names(data)), config.seed)


def train_uploads(config: Config, clients: int, folder: Path) -> list[Upload]:
    """Train every client as ``flwr run`` would, one after the other; weights go to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    start = initial_model(config)
    uploads = []
    for number in range(clients):
        key = f"client-{number:03d}"
        shard = load_shard(config.data, config.partition, number, clients, config.seed)
        model = copy.deepcopy(start)
        fit(
            model,
            shard,
            config.client,
            generator=generator(config.seed, key, "training"),
            device=torch.device("cpu"),
        )
        path = folder / f"{key}.safetensors"
        save_file(model.vit.state_dict(), path)
        counts = tuple(torch.bincount(shard.labels, minlength=model.num_classes).tolist())
        uploads.append(Upload(key, len(shard), path, label_counts=counts))
        print(f"{key}: {len(shard)} images trained", flush=True)
    return uploads


def without_counts(uploads: Sequence[Upload]) -> list[Upload]:
    """The uploads as clients send them by default."""
    return [replace(upload, label_counts=None) for upload in uploads]


def print_hardware() -> None:
    """Print what a reader needs to place a figure: machine, versions, commit."""
    facts = describe_environment()
    packages = facts["packages"]
    print(f"hardware: {facts['cpu']}, {facts['cores']} cores, GPUs: {facts['gpus'] or 'none'}")
    print(f"threads: {torch.get_num_threads()}, {platform.system()}, Python {facts['python']}")
    print(f"versions: torch {packages.get('torch')}, timm {packages.get('timm')}")
    commit = facts["commit"] or {"id": "unknown", "dirty": False}
    changed = " with uncommitted changes" if commit["dirty"] else ""
    print(f"commit: {commit['id'][:12]}{changed}", flush=True)
