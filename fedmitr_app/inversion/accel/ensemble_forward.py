"""Every client's model on the images that it serves, one after the other or all stacked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmitr_app.models import PatchViT, StackedViT, ViTOutput

EVEN = 4
"""What the number of images that a stacked model sees is a multiple of: that many of five tokens,
which the reference's stops leave of 16 patches, share a row (``models/packing.py``), which else
would have to be filled up at every block."""
MOST_PADDING = 1.25
"""Images that all stacked models see, as many as the busiest one, over those that count, up to
which stacking pays (choice)."""


@dataclass(frozen=True)
class EnsembleForward:
    """Runs the clients' models on the images that each serves.

    Outputs are as large as if every model saw all images: the others' rows are zero.

    Parameters
    ----------
    models : Sequence[PatchViT]
        The K clients', frozen.
    members : Tensor, optional
        ``[K, B]`` bool: which clients serve which image; all, if None.
    """

    models: Sequence[PatchViT]
    members: Tensor | None = None

    @cached_property
    def served(self) -> list[Tensor] | None:
        """Which images each client serves, looked up once: on a GPU the search waits for it."""
        if self.members is None:
            return None
        return [who.nonzero().flatten() for who in self.members]

    def run(self, k: int, patches: Tensor, position_idx: Tensor, attention: bool) -> ViTOutput:
        """Run model ``k`` on patches ``[B, n, C*p*p]`` at ``position_idx`` ``[B, n]``."""
        model = self.models[k]
        if self.served is None:
            return model.forward_patches(patches, position_idx, attention=attention)
        rows = self.served[k]
        part = model.forward_patches(patches[rows], position_idx[rows], attention=attention)
        return _spread(part, rows, len(patches))

    def run_stacked(
        self, stack: StackedViT, patches: Tensor, position_idx: Tensor, attention: bool
    ) -> list[ViTOutput]:
        """Run all models at once; each output is as :meth:`run` gives it."""
        clients, inputs = len(self.models), (patches, position_idx)
        if self.served is None:
            every, place = (p.expand(clients, *p.shape) for p in inputs)
            seen = stack.forward_patches(every, place, attention=attention)
        else:
            # Selected, not indexed: on a CPU the way back from an index goes number by number.
            shown, counted, places = self._in_stack
            some, place = (p.index_select(0, shown).unflatten(0, (clients, -1)) for p in inputs)
            seen = stack.forward_patches(some, place, attention=attention)
            picked = seen.each(lambda part: part.flatten(0, 1).index_select(0, counted))
            spread = _spread(picked, places, clients * len(patches))
            seen = spread.each(lambda part: part.unflatten(0, (clients, -1)))
        parts = ([None] * clients if part is None else part.unbind(0) for part in seen)
        return [ViTOutput(*output) for output in zip(*parts, strict=True)]

    def stacking_pays(self, patches: Tensor) -> bool:
        """Say whether stackable models are faster stacked, see :meth:`StackedViT.pays`."""
        most = len(patches)
        if self.served is not None:
            sizes = [len(own) for own in self.served]
            most = max(sizes)
            if len(sizes) * most > MOST_PADDING * sum(sizes):
                return False
        tokens = most * (patches.shape[1] + 1)
        return StackedViT.pays(self.models[0], tokens, patches.device)

    @cached_property
    def _in_stack(self) -> tuple[Tensor, Tensor, Tensor]:
        """What stacked models are shown, all as many images: shorter lists show image 0 as well.

        Returns
        -------
        tuple[Tensor, Tensor, Tensor]
            The images, model after model; which of the answers to them count; and where among
            ``K * B`` those belong.
        """
        assert self.members is not None and self.served is not None  # else all are shown
        rows, batch = self.served, self.members.shape[1]
        shown = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        shown = F.pad(shown, (0, -shown.shape[1] % EVEN))
        width, device = shown.shape[1], shown.device
        counted = [torch.arange(len(own), device=device) + k * width for k, own in enumerate(rows)]
        places = [own + k * batch for k, own in enumerate(rows)]
        return shown.flatten(), torch.cat(counted), torch.cat(places)


def _spread(output: ViTOutput, rows: Tensor, batch: int) -> ViTOutput:
    """Put some images' outputs in their places among ``batch`` images; zeros elsewhere."""
    return output.each(
        lambda part: part.new_zeros(batch, *part.shape[1:]).index_copy(0, rows, part)
    )
