"""Noise with the spectrum of natural images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_scale_noise(
    shape: tuple[int, int, int, int], slope: Tensor, generator: torch.Generator
) -> Tensor:
    """Return noise ``[B, C, H, W]`` of unit variance per image, in octaves.

    ``slope`` ``[B]`` is the growth of an octave's amplitude with each halving of its
    frequency, in powers of two: 0 is white, 1 about 1/f.
    """
    batch, channels, size, _ = shape
    field = torch.zeros(shape)
    octaves = max(1, int(math.log2(size)))
    for octave in range(octaves):
        side = max(2, math.ceil(size / 2**octave))
        coarse = torch.randn((batch, channels, side, side), generator=generator)
        fine = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
        field += fine * (2.0 ** (slope * octave)).reshape(-1, 1, 1, 1)
    field = field - field.mean(dim=(2, 3), keepdim=True)
    return field / field.std(dim=(2, 3), keepdim=True).clamp_min(1e-6)
