"""A batch of images under inversion: which patches are alive, and the optimiser of their pixels."""

import torch
from torch import Tensor

from fedmitr_app.config import InversionConfig
from fedmitr_app.inversion.patch_adam import PatchAdam
from fedmitr_app.inversion.patches import own_pixels, read_patches, write_patches
from fedmitr_app.models import InputSpec


class InversionState:
    """Images whose alive patches move, and whose stopped ones stay as they are.

    Parameters
    ----------
    initial : Tensor
        Images to begin with, ``[B, C, H, W]``, model input; not changed.
    config : InversionConfig
        The optimiser's settings.
    spec : InputSpec
        Of the models that see the images.
    patch_size : int
        Pixels a side.

    Attributes
    ----------
    images : Tensor
        As they are now, ``[B, C, H, W]``.
    alive : Tensor
        Patches that have not been stopped, in increasing order, ``[B, n]``.
    own : Tensor
        These patches' pixels, see :func:`~fedmitr_app.inversion.patches.own_pixels`.
    """

    def __init__(
        self, initial: Tensor, config: InversionConfig, spec: InputSpec, patch_size: int
    ) -> None:
        self.spec, self.patch_size = spec, patch_size
        self.images = initial.clone()
        patches = (spec.size // patch_size) ** 2
        self.alive = torch.arange(patches, device=initial.device).expand(len(initial), -1)
        self.own = own_pixels(self.alive, spec.size, patch_size)
        self._optimiser = PatchAdam(read_patches(initial, self.own), config, spec)
        low, high = spec.pixel_range(initial)
        self._bounds = (_per_patch(low, patch_size), _per_patch(high, patch_size))

    def move(self, grad: Tensor) -> None:
        """Take a step against the alive pixels' gradient ``[B, n, C*p*p]``, within their range."""
        pixels = self._optimiser.step(grad)
        write_patches(self.images, pixels.clamp_(*self._bounds), self.own)

    def stop(self, keep: Tensor) -> None:
        """Stop all alive patches but those at the positions ``keep`` ``[B, m]`` among them."""
        self.alive = self.alive.gather(1, keep)
        self.own = own_pixels(self.alive, self.spec.size, self.patch_size)
        self._optimiser.keep(keep)


def _per_patch(bound: Tensor, patch_size: int) -> Tensor:
    """Spread a per-channel bound ``[1, C, 1, 1]`` over a patch's pixels: ``[1, 1, C*p*p]``."""
    return bound.reshape(-1, 1).expand(-1, patch_size**2).reshape(1, 1, -1)
