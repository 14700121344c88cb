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
    takes any state. With ``inversion.step_scale = "image"`` the second moment is averaged over an
    image's alive pixels (choice): a pixel with a small gradient then moves little, where plain
    Adam moves every pixel about as far. Steps are counted on the device, so that one that is
    replayed (``inversion.cuda_graphs``) counts too.

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
        self.per_image = config.step_scale == "image"

    def keep(self, keep: Tensor) -> None:
        """Drop all patches but the positions ``keep`` ``[B, m]``."""
        index = keep.unsqueeze(-1).expand(-1, -1, self.pixels.shape[-1])
        self.pixels, self.mean, self.square = (
            state.gather(1, index) for state in (self.pixels, self.mean, self.square)
        )

    def keep_images(self, rows: Tensor) -> None:
        """Drop all images but ``rows`` ``[b]``."""
        self.pixels, self.mean, self.square = (
            state[rows] for state in (self.pixels, self.mean, self.square)
        )

    def step(self, grad: Tensor) -> Tensor:
        """Move the pixels by one step and return them; the caller may clip them in place."""
        before = None if self._shares is None else self.pixels.clone()
        if self.per_image:
            self._step_per_image(grad)
        else:
            self._step_per_pixel(grad)
        if before is not None:
            torch.lerp(before, self.pixels, self._shares, out=self.pixels)
        return self.pixels

    def _step_per_pixel(self, grad: Tensor) -> None:
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

    def _step_per_image(self, grad: Tensor) -> None:
        beta1, beta2 = self.betas
        self.count += 1
        self.mean.lerp_(grad, 1 - beta1)
        self.square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        square = self.square.mean((1, 2), keepdim=True)
        scale = (square / (1 - beta2**self.count)).sqrt_().add_(EPS)
        self.pixels.sub_(self.mean / scale * (self.rate / (1 - beta1**self.count)))
