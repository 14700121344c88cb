"""A client's model whose weights stay in main memory, for servers whose GPU can't hold all K."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedmitr_app.models.patch_vit import PatchViT, ViTOutput


class OffloadedViT(PatchViT):
    """A frozen model that visits the device of what it is shown, for that one pass.

    Its weights are on the CPU, on disk where they are mapped. Each pass copies them, and the
    copy lives as long as somebody needs it: without gradients until the pass is over, else until
    it was differentiated. Whoever holds the graphs of several such models at once holds their
    weights, too.

    Parameters
    ----------
    model : PatchViT
        Shares its weights.
    """

    def __init__(self, model: PatchViT) -> None:
        super().__init__(model.vit, model.spec, model.precision, model.compiled, model.matmul)
        self.eval()

    def rounded(self) -> "OffloadedViT":
        """Return this one: its weights stay where they are, as they are."""
        return self

    def forward_patches(
        self, patches: Tensor, position_idx: Tensor | None = None, **wanted: bool
    ) -> ViTOutput:
        """As :meth:`PatchViT.forward_patches`, on the device of ``patches``."""
        with torch.no_grad():
            visiting = {
                f"model.{name}": value.to(patches.device, non_blocking=True)
                for name, value in self.state_dict().items()
            }
        seen: ViTOutput = functional_call(_AtHome(self), visiting, (patches, position_idx), wanted)
        return seen


class _AtHome(nn.Module):
    """Runs a visiting model on whatever weights it has just now."""

    def __init__(self, model: OffloadedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, patches: Tensor, position_idx: Tensor | None, **wanted: bool) -> ViTOutput:
        return PatchViT.forward_patches(self.model, patches, position_idx, **wanted)
