"""What a model expects of an image."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmitr_app.config import DataConfig


@dataclass(frozen=True)
class InputSpec:
    """Size, channels and normalisation of the images that a model takes.

    Parameters
    ----------
    size : int
        Height and width in pixels.
    channels : int
        1 (grey) or 3 (colour).
    mean, std : tuple[float, ...]
        Per channel, for pixels in [0, 1]; one value serves all channels.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: DataConfig) -> "InputSpec":
        """Take what a run's configuration says of its images."""
        return cls(data.image_size, data.channels, data.mean, data.std)

    @property
    def is_sound(self) -> bool:
        """Whether mean and deviation are finite numbers, one or one for each channel."""
        return all(
            len(values) in (1, self.channels) and all(map(math.isfinite, values))
            for values in (self.mean, self.std)
        )

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn uint8 pixels, or float pixels in [0, 1], ``[B, C, H, W]`` into model input.

        Squares of another size are resized here, a batch at a time and on its device: a set
        of small images needn't be held in memory at the size that the model takes.
        """
        unit = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        if unit.shape[-1] != self.size:
            # With antialias this is Pillow's bicubic, which the pixels go through elsewhere.
            side = (self.size, self.size)
            unit = F.interpolate(unit, side, mode="bicubic", antialias=True).clamp(0, 1)
        return (unit - self._row(self.mean, unit)) / self._row(self.std, unit)

    def denormalise(self, images: Tensor) -> Tensor:
        """Turn model input ``[B, C, H, W]`` into float pixels in [0, 1]."""
        return (images * self._row(self.std, images) + self._row(self.mean, images)).clamp(0, 1)

    def pixel_range(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lowest and highest valid model input per channel, ``[1, C, 1, 1]``."""
        mean, std = self._row(self.mean, like), self._row(self.std, like)
        return -mean / std, (1 - mean) / std

    def _row(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        row = torch.tensor(values, dtype=like.dtype, device=like.device)
        return row.expand(self.channels).reshape(1, -1, 1, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "InputSpec":
        """Read :meth:`to_dict`'s form; raises ``KeyError``, ``TypeError`` or ``ValueError``."""
        return cls(
            size=int(raw["size"]),
            channels=int(raw["channels"]),
            mean=tuple(float(value) for value in raw["mean"]),
            std=tuple(float(value) for value in raw["std"]),
        )
