"""What 'auto' comes to for ``model.precision`` and ``model.matmul``: measured once a run.

The server decides, writes it down with the run's settings, and tells its clients: whoever works on
the run reads it there, so that the same seed stays the same result.
"""

import copy
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fedmitr_app.config import ModelConfig
from fedmitr_app.config.schema import AUTO, MATMULS, PRECISIONS
from fedmitr_app.errors import ModelError
from fedmitr_app.models.onednn import available
from fedmitr_app.models.patch_vit import PatchViT

_log = logging.getLogger(__name__)

DECIDED = {"precision": PRECISIONS, "matmul": MATMULS}
"""Of ``ModelConfig``'s fields those that may be 'auto', and what that may come to."""
DECIDED_KEYS = tuple(f"model.{name}" for name in DECIDED)
MARGIN = 1.3
"""How much faster than the plain way another must be: far more than what a measurement may be
off by, and worth its rounding (choice)."""
BLOCKS, ROWS, TURNS = 2, 400, 3
"""What is measured: a model's first blocks, on that many tokens at least; the best of three."""

Way = tuple[str, str]
"""A precision and what multiplies."""
PLAIN, ONEDNN, HALF = ("float32", "torch"), ("float32", "onednn"), ("bfloat16", "torch")


def undecided(config: ModelConfig) -> bool:
    """Say whether something is left 'auto'."""
    return AUTO in (config.precision, config.matmul)


def require_decided(config: ModelConfig) -> None:
    """Refuse to build a model while something is left 'auto'.

    Raises
    ------
    ModelError
        Naming the setting.
    """
    for name in DECIDED:
        if getattr(config, name) == AUTO:
            raise ModelError(
                f"model.{name} = 'auto' is decided by the run's server, which has not told what "
                f"it came to: name one of the others."
            )


def settings_of(config: ModelConfig) -> dict[str, str]:
    """Return what was decided, as run-config keys."""
    return {f"model.{name}": getattr(config, name) for name in DECIDED}


def without_auto(config: ModelConfig) -> ModelConfig:
    """Return the settings with what is always there in the place of 'auto'."""
    return as_before(config, dict(zip(DECIDED_KEYS, PLAIN, strict=True)))


def as_before(config: ModelConfig, settings: Mapping[str, Any]) -> ModelConfig:
    """Return the settings with what was decided in the place of 'auto', as far as it is told.

    ``settings`` are run-config keys, such as a run began with.
    """
    told = {name: settings.get(f"model.{name}") for name in DECIDED}
    known = {name: value for name, value in told.items() if value in DECIDED[name]}
    return replace(config, **{name: known[name] for name in known if getattr(config, name) == AUTO})


def resolve_auto(
    config: ModelConfig,
    model: PatchViT,
    device: torch.device,
    settings: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """Return the settings with nothing left 'auto'; the model works by them from here on.

    Parameters
    ----------
    config : ModelConfig
        What a user named stays.
    model : PatchViT
        Of the architecture that the run trains.
    device : torch.device
        Where it is measured, see :func:`seconds_of`.
    settings : Mapping[str, Any] | None
        Run-config keys of a run that is gone on with: what was decided then holds.
    """
    chosen = _decided(as_before(config, settings or {}), model, device)
    model.precision, model.matmul = chosen.precision, chosen.matmul
    return chosen


def _decided(config: ModelConfig, model: PatchViT, device: torch.device) -> ModelConfig:
    if not undecided(config):
        return config
    if config.precision == "bfloat16":  # which torch multiplies by oneDNN at any rate
        return replace(config, matmul="torch")
    taken = seconds_of(model, device)
    told = (f"{' by '.join(way)}: {1000 * each:.1f} ms" for way, each in taken.items())
    _log.info("A step of the model's first blocks on %s takes in %s.", device, ", ".join(told))
    matmul = config.matmul
    if matmul == AUTO:
        matmul = "onednn" if _pays(taken, ONEDNN, PLAIN) else "torch"
    whole = ("float32", matmul) if ("float32", matmul) in taken else PLAIN
    if config.precision == AUTO and _pays(taken, HALF, whole):
        return replace(config, precision="bfloat16", matmul="torch")
    return replace(config, precision="float32", matmul=matmul)


def _pays(taken: Mapping[Way, float], other: Way, usual: Way) -> bool:
    return other in taken and taken[usual] >= MARGIN * taken[other]


def seconds_of(model: PatchViT, device: torch.device) -> dict[Way, float]:
    """Time a model's first blocks, forwards and backwards to the pixels, in each way there is."""
    vit = copy.deepcopy(model.vit)
    vit.blocks = vit.blocks[:BLOCKS]
    cut = PatchViT(vit.to(device).eval().requires_grad_(False), model.spec)
    count = max(1, -(-ROWS // (model.num_patches + 1)))
    shape = (count, model.num_patches, vit.patch_embed.proj.weight[0].numel())
    rng = torch.Generator().manual_seed(0)
    patches = torch.randn(shape, generator=rng).to(device).requires_grad_()
    ways = [PLAIN, HALF]
    if device.type == "cpu" and available():
        ways.append(ONEDNN)
    taken = dict.fromkeys(ways, float("inf"))
    for turn in range(TURNS + 1):
        for way in ways:
            cut.precision, cut.matmul = way
            seconds = _step(cut, patches)
            if turn:  # the first one warms up
                taken[way] = min(taken[way], seconds)
    return taken


def _step(model: PatchViT, patches: torch.Tensor) -> float:
    # On a CPU the time that its cores worked: other processes hardly change it.
    clock = time.process_time if patches.device.type == "cpu" else time.perf_counter
    started = clock()
    loss = model.forward_patches(patches).logits.sum()
    torch.autograd.grad(loss, patches)[0].sum().item()  # a GPU is waited for
    return clock() - started
