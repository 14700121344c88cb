"""What the run ran on, and whether it left an accelerator idle."""

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch

from fedmitr_app.errors import ConfigError

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


def resolve_device(setting: str, key: str) -> torch.device:
    """Return the device that a setting asks for.

    Parameters
    ----------
    setting : str
        "auto" (a GPU where torch sees one), "cpu", "cuda" or "cuda:N".
    key : str
        The setting's run-config key, for the message.

    Raises
    ------
    ConfigError
        When a GPU is asked for that torch cannot see.
    """
    count = len(visible_gpus())
    if setting == "cpu" or (setting == "auto" and not count):
        return torch.device("cpu")
    number = "0" if setting in ("auto", "cuda") else setting.removeprefix("cuda:")
    if not number.isdigit():
        raise ConfigError.bad_value(key, setting, "'auto', 'cpu', 'cuda' or 'cuda:N'")
    if not count:
        raise ConfigError.bad_value(key, setting, "'auto' or 'cpu', because no GPU is visible here")
    if int(number) >= count:
        last = "'cuda:0'" if count == 1 else f"'cuda:0' to 'cuda:{count - 1}'"
        raise ConfigError.bad_value(
            key, setting, f"'auto', 'cpu' or {last}, because {_gpus(count)} visible here"
        )
    return torch.device("cuda", int(number))


def device_lines(role: str, device: torch.device, threads: int) -> list[str]:
    """Return the log lines that say what a process runs on.

    Parameters
    ----------
    role : str
        "server", or "client" with anything after it, such as "client 3".
    device : torch.device
        What it computes on.
    threads : int
        Its CPU threads.

    Returns
    -------
    list[str]
        One line, and a second one with the setting to change when there is a GPU
        that nobody told this process to use.
    """
    visible = visible_gpus()
    seen = f"visible GPUs: {', '.join(visible)}" if visible else "no GPU visible"
    lines = [f"{role}: device {device}, {threads} thread{'s' * (threads != 1)}, {seen}"]
    if device.type == "cpu":
        advice = _unused_gpu_advice(role, visible)
        if advice:
            lines.append(f"{role}: {advice}")
    return lines


def _unused_gpu_advice(role: str, visible: list[str]) -> str | None:
    side = "server" if role.startswith("server") else "client"
    if visible:
        return f"{visible[0]} is visible but unused: set {side}.device = 'auto' to use it"
    there = installed_gpus()
    if not there:
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"{there[0]} is there but unused: torch {torch.__version__} is built for CPUs only, "
            "install a build of it for this GPU"
        )
    if side == "client":
        # Ray hides every GPU from a client that reserved none.
        return (
            f"{there[0]} is there but unused: add client-resources-num-gpus=1.0 (or a share "
            "of one GPU such as 0.25) to --federation-config"
        )
    return (
        f"{there[0]} is there but unused: torch cannot see it, check CUDA_VISIBLE_DEVICES "
        f"(now {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')!r}) and the driver"
    )


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that torch can use in this process."""
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def installed_gpus(driver: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Return the names of the machine's NVIDIA GPUs, hidden from this process or not."""
    names = []
    for information in sorted(driver.glob("*/information")):
        for line in _read(information).splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    if names or shutil.which("nvidia-smi") is None:
        return names
    listed = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return [line.strip() for line in (listed or "").splitlines() if line.strip()]


def _gpus(count: int) -> str:
    return "1 GPU is" if count == 1 else f"{count} GPUs are"


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.lower().startswith("model name"):
            return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        name = _output(["sysctl", "-n", "machdep.cpu.brand_string"])
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
    tracked = _output(["git", "ls-files", "--", Path(__file__).name], folder)
    commit = _output(["git", "rev-parse", "HEAD"], folder)
    if not tracked or not commit:
        return None
    changes = _output(["git", "status", "--porcelain", "--untracked-files=no"], folder)
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


def _output(command: list[str], folder: Path | None = None) -> str | None:
    """Return what a command prints, or None when it fails, hangs or does not exist."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
