"""An objective evaluated in as few parts as the device's memory takes."""

import torch
from torch import Tensor

from fedmitr_app.inversion.objective import Gradient, Objective
from fedmitr_app.utils.memory import Halving


class Microbatches:
    """An image's gradient doesn't depend on the others': the parts' results are the whole's.

    Parameters
    ----------
    objective : Objective
        Of the whole batch.
    """

    def __init__(self, objective: Objective) -> None:
        self.config, self._whole = objective.config, objective
        # For each number of patches how small parts had to be: fewer patches, larger parts.
        self._halvings: dict[int, Halving] = {}
        # Kept, because an objective looks up only once whom its images are served by.
        self._parts = {(0, len(objective.targets)): objective}

    def gradient(self, patches: Tensor, position_idx: Tensor, attention: bool = False) -> Gradient:
        """Evaluate as :meth:`Objective.gradient`."""
        count, alive = patches.shape[:2]
        if alive not in self._halvings:
            self._halvings[alive] = Halving("inverting")

        def evaluate(rows: slice) -> Gradient:
            key = rows.start, rows.stop
            if key not in self._parts:
                self._parts[key] = self._whole.part(rows)
            return self._parts[key].gradient(patches[rows], position_idx[rows], attention)

        found = self._halvings[alive].over(count, evaluate)
        if len(found) == 1:
            return found[0]
        loss, grad, logits = (torch.cat(field) for field in list(zip(*found, strict=True))[:3])
        maps = [one.cls_attn for one in found if one.cls_attn is not None]
        return Gradient(loss, grad, logits, torch.cat(maps, dim=1) if attention else None)
