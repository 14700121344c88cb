"""Several images in one row of tokens, so that a CPU's attention kernel has enough to do."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Below so many tokens an image the fused kernel's cost per image hardly falls any more on a CPU,
# and rows of about twenty tokens are the cheapest (choice).
FEW_TOKENS = 12
ROW_TOKENS = 20


class Packing(NamedTuple):
    """How many images share a row, and the mask that keeps them apart."""

    images: int
    """In a row; 1: nothing is packed."""
    count: int  # type: ignore[assignment]  # in the place of a tuple's own, which nobody calls
    """Images in all."""
    mask: Tensor | None
    """Added to the attention's scores, ``[row, row]``: 0 within an image, -inf between two."""

    @classmethod
    def of(cls, tokens: Tensor) -> "Packing":
        """Choose for ``tokens`` ``[B, T, D]``; a GPU's kernels want no mask."""
        count, length, _ = tokens.shape
        images = max(1, min(ROW_TOKENS // length, count))
        if length > FEW_TOKENS or images == 1 or tokens.device.type != "cpu":
            return cls(1, count, None)
        image = torch.arange(images).repeat_interleave(length)
        mask = torch.zeros(len(image), len(image), dtype=tokens.dtype)
        mask.masked_fill_(image.unsqueeze(0) != image.unsqueeze(1), float("-inf"))
        return cls(images, count, mask)

    def pack(self, tokens: Tensor) -> Tensor:
        """``[B, T, D]`` to ``[rows, images * T, D]``; the last row is filled up with zeros."""
        if self.images == 1:
            return tokens
        rest = -self.count % self.images
        filled = F.pad(tokens, (0, 0, 0, 0, 0, rest)) if rest else tokens
        return filled.reshape(-1, self.images * tokens.shape[1], tokens.shape[2])

    def unpack(self, tokens: Tensor) -> Tensor:
        """Undo :meth:`pack`."""
        if self.images == 1:
            return tokens
        row, length, width = tokens.shape
        return tokens.reshape(row * self.images, length // self.images, width)[: self.count]
