"""Which device a process computes on, and whether it leaves an accelerator idle."""

import os
import shutil
from pathlib import Path

import torch

from fedmitr_app.errors import ConfigError
from fedmitr_app.utils.shell import output_of, text_of


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
        for line in text_of(information).splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    if names or shutil.which("nvidia-smi") is None:
        return names
    listed = output_of(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return [line.strip() for line in (listed or "").splitlines() if line.strip()]


def _gpus(count: int) -> str:
    return "1 GPU is" if count == 1 else f"{count} GPUs are"
