"""What a run will take, from a few passes of its model on noise: nothing is trained.

Passes are counted as the settings ask for them and timed on this machine, one thing after the
other: good to a factor of two, as a rule (choice: what a person wants to know before a run).
"""

import copy
import math
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmitr_app.config import Config
from fedmitr_app.inversion import Schedule
from fedmitr_app.inversion.flops import flop_ratio
from fedmitr_app.models import PatchViT

FEW_IMAGES, MOMENT = 8, 0.5
"""Timed first; and the seconds below which a whole batch is timed, too."""
PROCESS_BYTES = 600 * 2**20
"""Of a process that has imported torch and Flower and does nothing (measured, torch 2.15, CPU)."""


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
    batch, small = config.inversion.batch_size, config.client.batch_size
    large = config.distillation.batch_size
    shape = (
        max(batch, small, large),
        model.num_patches,
        vit.vit.patch_embed.proj.weight[0].numel(),
    )
    patches = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)

    def forward(count: int) -> None:
        with torch.no_grad():
            vit.forward_patches(patches[:count]).logits.sum().item()

    def invert(count: int) -> None:
        seen = patches[:count].clone().requires_grad_()
        torch.autograd.grad(vit.forward_patches(seen).logits.sum(), seen)[0].sum().item()

    def train(count: int) -> None:
        vit.forward_patches(patches[:count]).logits.sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    weights = {value.untyped_storage().data_ptr() for value in vit.state_dict().values()}
    looked, inverted = _seconds(forward, batch), _seconds(invert, batch)
    kept = _kept(invert, weights)
    optimiser = torch.optim.AdamW(vit.requires_grad_(True).parameters(), lr=0.0, fused=True)
    trained, distilled = _seconds(train, small), _seconds(train, large)
    return Passes(looked, inverted, trained, distilled, kept, _kept(train, weights))


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
    seconds = {"training of all clients": each * sum(shards)}
    seconds["training of the largest client"] = each * max(shards, default=0)
    seconds |= _fusion(config, model, passes, clients)
    if test_images:
        seconds["evaluation"] = (clients + 3) * test_images * passes.forward
    members, inversion = _members(config, clients), config.inversion
    together = members if inversion.loss == "ensemble" and inversion.gradient == "joint" else 1
    batch = inversion.batch_size * passes.invert_bytes * together
    distilled = config.distillation.batch_size * passes.train_bytes
    return Estimate(
        seconds,
        upload=weights,
        client=PROCESS_BYTES + 4 * weights + client.batch_size * passes.train_bytes,
        server=PROCESS_BYTES + (members + 4) * weights + max(batch, distilled),
    )


def _members(config: Config, clients: int) -> int:
    return clients + config.teacher.merged


def _fusion(config: Config, model: PatchViT, passes: Passes, clients: int) -> dict[str, float]:
    """Return the seconds of FedMITR's stages on the server."""
    method, members = config.server.method, _members(config, clients)
    stages = {"probing": config.teacher.probe_images * clients * passes.forward}
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
        stages["control, in the background"] = stages["distillation"]
    return stages


def _sparse(config: Config, model: PatchViT) -> float:
    """Return the share of a dense inversion's work that is done."""
    inversion = config.inversion
    if inversion.schedule == "automatic":
        return 1.0  # which the images decide
    counts = Schedule.build(inversion).counts(model.num_patches, inversion.iterations)
    return flop_ratio(model, counts)


def _seconds(work: Callable[[int], object], batch: int) -> float:
    """Time an image's share of a batch: of a few images, of all if those take but a moment."""
    few = min(batch, FEW_IMAGES)
    taken = _best(lambda: work(few)) / few
    return taken if taken * batch > MOMENT else _best(lambda: work(batch)) / batch


def _best(work: Callable[[], object]) -> float:
    """Return the shortest of three times, the first of which warms up."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


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
