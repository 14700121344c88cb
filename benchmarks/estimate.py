"""What the server's work would take on so many devices: counted, not measured.

    python -m benchmarks.estimate --clients 100 --tflops 989 --share 0.35  # ViT-B at 224 px

Every forward and backward pass of the settings is counted in FLOPs and divided by what a device
does: its peak times the share of it that the work reaches (``python -m benchmarks --only
schedules`` measures both). Inversion is split over the devices by shards of
``inversion.batch-size`` images; the rest is done by one. Left out: the control, evaluation.
"""

import argparse
import math
from dataclasses import replace

import torch

from benchmarks.common import random_vit
from benchmarks.inversion import REFERENCE
from fedmitr_app.config import DistillationConfig, InversionConfig
from fedmitr_app.inversion import Schedule
from fedmitr_app.inversion.flops import step_flops
from fedmitr_app.models import PatchViT


def parts(
    model: PatchViT,
    clients: int,
    inversion: InversionConfig,
    distillation: DistillationConfig,
    probes: int,
) -> dict[str, float]:
    """Count the FLOPs of the server's stages.

    A forward pass is taken for half of :func:`step_flops`, a training step for one and a half.
    """
    dense, with_tokens = (step_flops(model, model.num_patches, asked) for asked in (False, True))
    relabels = distillation.relabel != "none" and distillation.beta > 0
    teaching = with_tokens if relabels and distillation.relabel == "token" else dense
    learning = with_tokens if relabels else dense
    counts = Schedule.build(inversion).counts(model.num_patches, inversion.iterations)
    per_count = {alive: step_flops(model, alive) for alive in set(counts)}
    asked = min(inversion.teachers_per_image or clients, clients)
    choosing = inversion.candidates * dense / 2 if inversion.candidates > 1 else 0.0
    # Every client reads every candidate; those that an image asks take its steps.
    image = clients * choosing + asked * sum(per_count[alive] for alive in counts)
    shown = math.ceil(distillation.steps / distillation.repeats) * distillation.batch_size
    return {
        "estimating client priors": clients * probes * dense / 2,
        "inversion": inversion.images * image,
        "distillation: teacher": shown * clients * teaching / 2,
        "distillation: student": distillation.steps * distillation.batch_size * 1.5 * learning,
    }


def main() -> None:
    """Print the stages' times, and the whole on more and more devices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--image", type=int, default=224, help="pixels a side")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--asked", type=int, default=0, help="clients an image asks; 0: all")
    parser.add_argument("--images", type=int, default=10_000, help="inversion.images")
    parser.add_argument("--iterations", type=int, default=100, help="inversion.iterations")
    steps = DistillationConfig().steps
    parser.add_argument("--steps", type=int, default=steps, help="distillation.steps")
    parser.add_argument("--batch", type=int, default=64, help="images of a shard")
    parser.add_argument("--tflops", type=float, required=True, help="a device's measured peak")
    parser.add_argument("--share", type=float, required=True, help="of it that is reached, 0 to 1")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    asked = parser.parse_args()
    if not (0 < asked.share <= 1 and asked.tflops > 0):
        told = f"--tflops {asked.tflops:g} must be above 0, --share {asked.share:g} at most 1"
        parser.error(told + " and above 0")
    model = random_vit(asked.model, asked.image, torch.device("cpu")).requires_grad_(False)
    inversion = replace(
        InversionConfig(),
        images=asked.images,
        iterations=asked.iterations,
        batch_size=asked.batch,
        teachers_per_image=asked.asked,
        stops=REFERENCE,
    )
    distillation = replace(DistillationConfig(), steps=asked.steps)
    work = parts(model, asked.clients, inversion, distillation, probes=2048)
    rate = asked.tflops * 1e12 * asked.share
    weights = sum(p.numel() for p in model.parameters()) * 4 * asked.clients / 2**30
    half_more = f"{1.5 * weights:.1f} with rounded copies for bfloat16"
    print(f"{asked.clients} clients of {asked.model}: {weights:.1f} GiB of weights, {half_more}")
    for name, flops in work.items():
        print(f"{name}: {flops:.3g} FLOPs, {flops / rate:.0f} s on one device")
    shards = math.ceil(asked.images / asked.batch)
    alone = sum(work.values()) - work["inversion"]
    for devices in asked.devices:
        split = work["inversion"] * math.ceil(shards / devices) / shards
        whole = (split + alone) / rate
        faster = sum(work.values()) / (split + alone)
        print(f"{devices} devices: {whole:.0f} s, {faster:.1f} times as fast as one")


if __name__ == "__main__":
    main()
