"""The optimiser of pixels that go on being inverted."""

import torch
from torch import Tensor
from torch.optim.adam import adam

from fedmitr_app.config import InversionConfig
from fedmitr_app.models import InputSpec

EPS = 1e-8


class PatchAdam:
    """Adam (Kingma & Ba, 2015) on the alive patches only, ``[B, n, C*p*p]``.

    Its state shrinks with them, so that a stopped patch has neither gradient nor momentum:
    torch's optimiser can't drop rows of a parameter without losing its state, but its fused step
    takes any state.

    Parameters
    ----------
    pixels : Tensor
        Of the alive patches, ``[B, n, C*p*p]``; moved in place.
    config : InversionConfig
        ``inversion.learning_rate`` is the share of the valid pixel range that a step of Adam's
        size 1 moves (choice): the same in sight, however a model's input is normalised.
    spec : InputSpec
        Says how wide that range is in each channel.
    """

    def __init__(self, pixels: Tensor, config: InversionConfig, spec: InputSpec) -> None:
        self.pixels = pixels
        self.mean = torch.zeros_like(pixels)
        self.square = torch.zeros_like(pixels)
        low, high = spec.pixel_range(torch.empty(0, dtype=torch.float64))
        width = (high - low).flatten()
        self.rate = config.learning_rate * float(width.max())
        self.betas = (config.beta1, config.beta2)
        # torch's step has one rate: where channels differ, the others' steps are shortened.
        self._shares = None
        if len(width.unique()) > 1:
            each = (width / width.max()).to(pixels)
            self._shares = each.repeat_interleave(pixels.shape[-1] // spec.channels)
        self.count = torch.zeros((), device=pixels.device)

    def keep(self, keep: Tensor) -> None:
        """Drop all patches but the positions ``keep`` ``[B, m]``."""
        index = keep.unsqueeze(-1).expand(-1, -1, self.pixels.shape[-1])
        self.pixels, self.mean, self.square = (
            state.gather(1, index) for state in (self.pixels, self.mean, self.square)
        )

    def step(self, grad: Tensor) -> Tensor:
        """Move the pixels by one step and return them; the caller may clip them in place."""
        shares = self._shares
        before = None if shares is None else self.pixels.clone()
        beta1, beta2 = self.betas
        adam(
            [self.pixels],
            [grad],
            [self.mean],
            [self.square],
            [],
            [self.count],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=self.rate,
            weight_decay=0.0,
            eps=EPS,
            maximize=False,
        )
        if before is not None and shares is not None:
            torch.lerp(before, self.pixels, shares, out=self.pixels)
        return self.pixels
