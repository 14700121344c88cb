"""What a run ran on: versions, hardware, commit."""

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch

from fedmitr_app.utils.device import visible_gpus
from fedmitr_app.utils.shell import output_of, text_of

_PACKAGES = (
    "fedmitr-app",
    "torch",
    "torchvision",
    "timm",
    "flwr",
    "flwr-datasets",
    "ray",
    "datasets",
    "huggingface-hub",
    "safetensors",
    "numpy",
    "pandas",
    "pillow",
    "scikit-learn",
    "mlxtend",
    "matplotlib",
)


def describe_environment() -> dict[str, Any]:
    """Return the versions, hardware and commit of this process, JSON-able.

    Returns
    -------
    dict[str, Any]
        ``python``, ``os``, ``cpu``, ``cores`` (usable by this process), ``threads``
        (torch's), ``memory_gib``, ``gpus`` (visible ones by name), ``cuda``
        (that torch was built for), ``packages`` and ``commit`` (``id`` and ``dirty`` of the
        git work tree that this code is in or is an unchanged copy of, else None). Nothing
        here names the user or a path.
    """
    return {
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpus": visible_gpus(),
        "cuda": torch.version.cuda,
        "packages": _versions(),
        "commit": _commit(Path(__file__).parent) or _commit_of_the_original(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    for line in text_of(Path("/proc/cpuinfo")).splitlines():
        if line.lower().startswith("model name"):
            return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        name = output_of(["sysctl", "-n", "machdep.cpu.brand_string"])
        if name:
            return name
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return None
    return round(size / 2**30, 1)


def _commit(folder: Path) -> dict[str, Any] | None:
    """Return the commit of the package, if git tracks it where it lies."""
    # Without the ls-files a copy inside somebody else's work tree (a virtual
    # environment, Flower's app folder) would claim that project's commit.
    tracked = output_of(["git", "ls-files", "--", Path(__file__).name], folder)
    commit = output_of(["git", "rev-parse", "HEAD"], folder)
    if not tracked or not commit:
        return None
    changes = output_of(["git", "status", "--porcelain", "--untracked-files=no"], folder)
    return {"id": commit, "dirty": changes != ""}


def _commit_of_the_original() -> dict[str, Any] | None:
    """Return the commit of an editable install's sources, if this is an unchanged copy of them.

    ``flwr run`` copies the project into Flower's own folder and runs it from there.
    """
    package = Path(__file__).parents[1]
    try:
        origin = json.loads(metadata.distribution("fedmitr-app").read_text("direct_url.json") or "")
        folder = Path(url2pathname(urlsplit(origin["url"]).path)) / package.name
        same = origin["dir_info"]["editable"] and all(
            path.read_bytes() == (folder / path.relative_to(package)).read_bytes()
            for path in package.rglob("*.py")
        )
    except (metadata.PackageNotFoundError, ValueError, KeyError, OSError):
        return None
    return _commit(folder / Path(__file__).parent.name) if same else None
