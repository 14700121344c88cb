"""Which images are finished before their last iteration (``inversion.early_stop``; choice)."""

import torch
from torch import Tensor

from fedmitr_app.config import InversionConfig

STEPS_IN_A_ROW = 3
STEPS_BETWEEN_LOOKS = 5  # finished images leave the batch now and then: a GPU is waited for


class Reached:
    """Counts for how many steps the teacher's answer has been near an image's target.

    Near: ``KL(target || answer)`` of at most ``inversion.early_stop`` nats. Nothing is looked at
    before the schedule's last stop, so that all images lose as many patches.

    Parameters
    ----------
    targets : Tensor
        Class probabilities ``[B, classes]``.
    first : int
        The first iteration that counts.
    """

    def __init__(self, targets: Tensor, config: InversionConfig, first: int) -> None:
        self.targets, self.nats, self.first = targets, config.early_stop, first
        self.count = torch.zeros(len(targets), dtype=torch.long, device=targets.device)

    def finishes(self, iteration: int, rows: Tensor, logits: Tensor) -> bool:
        """Count this step's answers ``[b, classes]`` to the images ``rows``; is it time to look?

        Whether any of them is finished says :meth:`others`.
        """
        if not self.nats or iteration < self.first:
            return False
        targets = self.targets[rows]
        distance = (targets.xlogy(targets) - targets * logits.log_softmax(-1)).sum(-1)
        self.count[rows] = torch.where(distance <= self.nats, self.count[rows] + 1, 0)
        if (iteration + 1) % STEPS_BETWEEN_LOOKS:
            return False
        return bool((self.count[rows] >= STEPS_IN_A_ROW).any())

    def others(self, rows: Tensor) -> Tensor:
        """Return the places in ``rows`` of images that are not finished."""
        return (self.count[rows] < STEPS_IN_A_ROW).nonzero().flatten()
