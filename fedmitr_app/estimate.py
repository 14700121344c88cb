"""What a run will take, from a few passes of its model on noise: nothing is trained.

Passes are counted as the settings ask for them and timed on this machine, one thing after the
other: good to a factor of two, as a rule (choice: what a person wants to know before a run).
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedmitr_app.config import Config
from fedmitr_app.inversion import Schedule
from fedmitr_app.inversion.flops import flop_ratio
from fedmitr_app.models import PatchViT

FEW_IMAGES, MANY_IMAGES, MOMENT = 8, 256, 0.3
"""Timed first; timed at most; and the seconds below which more than a few are."""
TRIES, LEAST_SECONDS, BUSY = 3, 0.5, 2.0
"""How often, and for how long at least, a pass is timed; and how many times as long as the
shortest try the usual one takes where the machine counts as busy."""
PROCESS_BYTES = 600 * 2**20
"""Of a process that has imported torch and Flower and does nothing, on a CPU."""


@dataclass(frozen=True)
class Passes:
    """One image's passes through one model.

    Attributes
    ----------
    forward, invert : float
        Seconds of a forward pass; of one and its gradient in the pixels of all patches.
    train, distil : float
        Of one, its gradient in the weights and a step, in a client's batches and in the student's.
    invert_bytes, train_bytes : int
        What is kept until it is differentiated.
    """

    forward: float
    invert: float
    train: float
    distil: float
    invert_bytes: int
    train_bytes: int
    spread: float = 1.0
    """How many times as long as the shortest the usual try took: far above 1 where the machine
    does other things."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take."""

    seconds: dict[str, float]
    """Of its stages, by name."""
    upload: int
    """Bytes that each client sends, and is sent."""
    client: int
    """Bytes of memory that a client needs."""
    server: int
    """The same of the server, beside what the test set takes."""


def measure_passes(config: Config, model: PatchViT, device: torch.device) -> Passes:
    """Time a model's passes on noise, in the batches that a run takes; it is not changed."""
    vit = copy.deepcopy(model).to(device).eval().requires_grad_(False)
    pixels = vit.vit.patch_embed.proj.weight[0].numel()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((MANY_IMAGES, model.num_patches, pixels), generator=generator)

    def some(count: int) -> Tensor:
        return noise[:count].to(device)

    def forward(count: int) -> None:
        with torch.no_grad():
            vit.forward_patches(some(count)).logits.sum().item()

    def invert(count: int) -> None:
        seen = some(count).clone().requires_grad_()
        torch.autograd.grad(vit.forward_patches(seen).logits.sum(), seen)[0].sum().item()

    def train(count: int) -> None:
        vit.forward_patches(some(count)).logits.sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    weights = {value.untyped_storage().data_ptr() for value in vit.state_dict().values()}
    images = config.inversion.images
    batch = min(config.inversion.batch_size, images)
    large = min(config.distillation.batch_size, images)
    asked, inverted = _timed(forward, batch), _timed(invert, batch)
    invert_bytes = _kept(invert, weights)
    optimiser = torch.optim.AdamW(vit.requires_grad_(True).parameters(), lr=0.0, fused=True)
    trained, distilled = _timed(train, config.client.batch_size), _timed(train, large)
    timed = asked, inverted, trained, distilled
    return Passes(
        asked.shortest,
        inverted.shortest,
        trained.shortest,
        distilled.shortest,
        invert_bytes,
        _kept(train, weights),
        max(each.usual / each.shortest for each in timed),
    )


def estimate(
    config: Config, model: PatchViT, passes: Passes, shards: Sequence[int], test_images: int
) -> Estimate:
    """Count what a run of FedMITR, or of a method that only merges, asks for.

    Parameters
    ----------
    config : Config
        Whole, with nothing left 'auto'.
    model : PatchViT
        Of the run's architecture; frozen.
    shards : Sequence[int]
        Images that each client trains on.
    test_images : int
        0 without a test set.
    """
    weights = sum(value.nbytes for value in model.state_dict().values())
    client, clients = config.client, len(shards)
    again = (client.epochs + 1 if client.head == "class-means" else 0) + client.head_first
    each = client.epochs * passes.train + again * passes.forward
    taken = [min(each * size, client.max_seconds or math.inf) for size in shards]
    seconds = {"the largest client's training": max(taken, default=0.0)}
    seconds["all clients' training"] = sum(taken)
    seconds |= _fusion(config, model, passes, clients)
    if test_images:
        seconds["evaluation"] = (clients + 3) * test_images * passes.forward
    members, inversion = _members(config, clients), config.inversion
    together = members if inversion.loss == "ensemble" and inversion.gradient == "joint" else 1
    work = 0
    if config.server.method == "fedmitr":
        batch = min(inversion.batch_size, inversion.images) * passes.invert_bytes * together
        distilled = min(config.distillation.batch_size, inversion.images) * passes.train_bytes
        work = max(batch, distilled)
    batch_of_client = min(client.batch_size, max(shards, default=0))
    return Estimate(
        seconds,
        upload=weights,
        client=PROCESS_BYTES + 4 * weights + batch_of_client * passes.train_bytes,
        server=PROCESS_BYTES + (members + 4) * weights + work,
    )


def _members(config: Config, clients: int) -> int:
    return clients + config.teacher.merged


def _fusion(config: Config, model: PatchViT, passes: Passes, clients: int) -> dict[str, float]:
    """Return the seconds of FedMITR's stages on the server."""
    method, members = config.server.method, _members(config, clients)
    stages = {"estimating client priors": config.teacher.probe_images * clients * passes.forward}
    if method != "fedmitr":
        return stages
    inversion, distillation = config.inversion, config.distillation
    served = min(inversion.teachers_per_image or members, members)
    choosing = inversion.candidates if inversion.candidates > 1 else 0
    steps = inversion.iterations * inversion.views * served
    again = 1.5 if inversion.gradient == "frugal" and inversion.loss == "ensemble" else 1.0
    stages["inversion"] = inversion.images * (
        choosing * members * passes.forward + steps * again * _sparse(config, model) * passes.invert
    )
    fresh = math.ceil(distillation.steps / distillation.repeats)
    asked = fresh * distillation.batch_size * members * passes.forward
    if distillation.train == "head" and distillation.relabel == "none":
        learnt = fresh * distillation.batch_size * passes.forward
    else:
        learnt = distillation.steps * distillation.batch_size * passes.distil
    stages["distillation"] = asked + learnt
    if config.server.control and config.server.test_set:
        stages["the control's distillation"] = stages["distillation"]
    return stages


def _sparse(config: Config, model: PatchViT) -> float:
    """Return the share of a dense inversion's work that is done."""
    inversion = config.inversion
    if inversion.schedule == "automatic":
        return 1.0  # which the images decide
    counts = Schedule.build(inversion).counts(model.num_patches, inversion.iterations)
    return flop_ratio(model, counts)


class _Seconds(NamedTuple):
    """Of several tries."""

    shortest: float
    usual: float


def _timed(work: Callable[[int], object], batch: int) -> _Seconds:
    """Time an image's share of a batch: of a few images, of more if those take but a moment."""
    few = min(batch, FEW_IMAGES)
    shortest, usual = _tries(lambda: work(few))
    many = min(batch, MANY_IMAGES)
    if shortest / few * many > MOMENT:
        return _Seconds(shortest / few, usual / few)
    shortest, usual = _tries(lambda: work(many))
    return _Seconds(shortest / many, usual / many)


def _tries(work: Callable[[], object]) -> tuple[float, float]:
    """Return the shortest and the median of some tries, after one that warms up."""
    work()
    taken: list[float] = []
    while len(taken) < TRIES or sum(taken) < LEAST_SECONDS:
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken), statistics.median(taken)


def _kept(work: Callable[[int], object], weights: Set[int]) -> int:
    """Return the bytes of what is kept of an image to be differentiated, but for weights."""
    seen: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:  # each storage once
            seen[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        work(1)
    return sum(seen.values())
