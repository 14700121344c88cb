"""An objective evaluated in as few parts as the device's memory takes."""

import logging

import torch
from torch import Tensor

from fedmitr_app.inversion.objective import Gradient, Objective

_log = logging.getLogger(__name__)


class Microbatches:
    """Halve a batch, and again, for as long as the device runs out of memory.

    An image's gradient doesn't depend on the others': the parts' results are the whole's.

    Parameters
    ----------
    objective : Objective
        Of the whole batch.
    """

    def __init__(self, objective: Objective) -> None:
        self.teacher, self.config = objective.teacher, objective.config
        self._whole, self._size = objective, len(objective.targets)
        self._parts = [objective]

    def gradient(self, patches: Tensor, position_idx: Tensor, attention: bool = False) -> Gradient:
        """Evaluate as :meth:`Objective.gradient`; the parts stay as small as they had to be."""
        while True:
            try:
                return self._evaluate(patches, position_idx, attention)
            except torch.OutOfMemoryError:
                if self._size == 1:
                    raise
                self._size = -(-self._size // 2)
            # Outside the except block, which would keep what was computed alive.
            self._parts = [self._whole.part(rows) for rows in self._rows(len(patches))]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            _log.warning("out of memory: inverting %d images at a time from here on.", self._size)

    def _evaluate(self, patches: Tensor, position_idx: Tensor, attention: bool) -> Gradient:
        if len(self._parts) == 1:
            return self._parts[0].gradient(patches, position_idx, attention)
        rows = self._rows(len(patches))
        found = [
            part.gradient(patches[row], position_idx[row], attention)
            for part, row in zip(self._parts, rows, strict=True)
        ]
        loss, grad, logits = (torch.cat(field) for field in list(zip(*found, strict=True))[:3])
        maps = torch.cat([one.cls_attn for one in found], dim=1) if attention else None
        return Gradient(loss, grad, logits, maps)

    def _rows(self, count: int) -> list[slice]:
        return [slice(first, first + self._size) for first in range(0, count, self._size)]
