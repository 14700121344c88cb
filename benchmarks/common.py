"""What the benchmarks share: what they ran on."""

import platform

import torch

from fedmitr_app.reporting.environment import describe_environment


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
