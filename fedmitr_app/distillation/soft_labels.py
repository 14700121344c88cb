"""Soft labels: the ensemble's answers to a batch, kept while the batch comes again."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedmitr_app.distillation.batches import Batch, Recipe
from fedmitr_app.teacher import Teacher


class SoftLabels(NamedTuple):
    """The ensemble's answers to a batch."""

    logits: Tensor
    """Class-token logits, ``[B, C]``."""
    relabels: Tensor | None
    """The logits of q: ``[B, N, C]``, or ``[B, 1, C]`` for one label per image."""

    def part(self, rows: slice) -> "SoftLabels":
        """Return the answers to some of the images."""
        return SoftLabels(self.logits[rows], None if self.relabels is None else self.relabels[rows])

    def compact(self) -> "SoftLabels":
        """Return them with each token's answer in half precision, the largest part of them.

        Rounds a logit by 0.05 % (choice; 65504 is the largest that is told from larger ones).
        """
        if self.relabels is None:
            return self
        most = torch.finfo(torch.half).max
        return SoftLabels(self.logits, self.relabels.clamp(-most, most).half())


@dataclass
class KeptBatch:
    """A batch that may come again, and what is known of it."""

    recipe: Recipe
    labels: SoftLabels | None = None
    features: Tensor | None = None
    """The student's, ``[B, D]``, where they never change."""
    targets: Tensor | None = None
    """The pseudo-labels, ``[B, C]``, kept beside those."""


def ask(teacher: Teacher, batch: Batch, relabel: str) -> SoftLabels:
    """Ask the ensemble about a batch.

    Parameters
    ----------
    relabel : str
        What ``relabels`` shall be: ``none``, or the answer to each ``token``, to the whole
        ``image``, or to its ``background``.
    """
    answer = teacher(batch.images, patch_logits=relabel == "token")
    if relabel == "image":
        return SoftLabels(answer.logits, answer.logits.unsqueeze(1))
    if relabel == "background":
        background = _background_labels(teacher, batch, answer.logits)
        return SoftLabels(answer.logits, background.unsqueeze(1))
    return SoftLabels(answer.logits, answer.patch_logits)


def _background_labels(teacher: Teacher, batch: Batch, logits: Tensor) -> Tensor:
    """Return the ensemble's logits when it sees only low-density patches, ``[B, C]``.

    All images of a batch show equally many patches: the number of background patches of
    the image that has fewest; where an image has more, they are spread evenly over its
    own. An image without any keeps its whole-image label.
    """
    background = ~batch.mask
    counts = background.sum(1)
    some = counts > 0
    if not some.any():
        return logits
    fewest = int(counts[some].min())
    # True sorts before False, in spatial order; then every (count/fewest)-th of them
    # [B, N] -> [B, fewest]
    order = background[some].int().argsort(dim=1, descending=True, stable=True)
    steps = torch.arange(fewest, device=order.device) * counts[some].unsqueeze(1) // fewest
    seen = teacher(batch.images[some], order.gather(1, steps)).logits
    return logits.clone().index_copy_(0, some.nonzero().flatten(), seen)
