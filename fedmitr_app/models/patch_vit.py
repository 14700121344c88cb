"""A timm Vision Transformer that can run on a chosen subset of its patches.

Wrapped, not forked: every weight and every block is timm's own. Only the few lines
between the pixels and the first block are done here, so that the pixels of dropped
patches are never embedded, and the last block's, so that it serves the class token alone
where nobody asks for the patches' (``models/blocks.py``).
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from fedmitr_app.config.schema import MATMULS, PRECISIONS
from fedmitr_app.errors import ModelError
from fedmitr_app.models.blocks import run_block, run_class_token
from fedmitr_app.models.compiled import compile_once
from fedmitr_app.models.onednn import OneDNN
from fedmitr_app.models.packing import Packing
from fedmitr_app.models.spec import InputSpec
from fedmitr_app.models.typed import PlainViT


class ViTOutput(NamedTuple):
    """What one forward pass returns; ``n`` counts the patches that were seen."""

    logits: Tensor
    """Class-token logits, ``[B, classes]``."""
    features: Tensor
    """Class-token features after the final norm, ``[B, D]``."""
    patch_tokens: Tensor | None
    """Final normed patch tokens, ``[B, n, D]``, if asked for."""
    patch_logits: Tensor | None
    """The classifier head applied to each patch token, ``[B, n, classes]``, if asked for."""
    cls_attn: Tensor | None
    """Last block's attention from class token to patches, mean over heads, ``[B, n]``, likewise."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "ViTOutput":
        """Return the same parts, all of them changed alike."""
        optional = (None if part is None else change(part) for part in self[2:])
        return ViTOutput(change(self.logits), change(self.features), *optional)


class PatchViT(nn.Module):
    """Wrap a plain timm ViT or DeiT.

    Parameters
    ----------
    vit : VisionTransformer
        One class token, absolute position embeddings, a square grid, and a linear head
        on the class token.
    spec : InputSpec
        The images it takes.
    precision : str
        ``float32``, or ``bfloat16`` for the embedding, the blocks' matrix products and attention;
        weights (but see :meth:`rounded`), residual stream, head and all that is returned stay
        float32.
    compiled : bool
        Whether its blocks run compiled.
    matmul : str
        ``torch``, or ``onednn`` for what a CPU multiplies in float32, unless it is compiled
        (``models/onednn.py``).

    Raises
    ------
    ModelError
        If ``vit`` is of another kind (distilled DeiT, average-pooled, rotary, ...), or
        takes other images than ``spec`` describes, or there is no such ``precision`` or ``matmul``.
    """

    __call__: Callable[..., ViTOutput]  # as forward, which torch doesn't know

    def __init__(
        self,
        vit: VisionTransformer,
        spec: InputSpec,
        precision: str = "float32",
        compiled: bool = False,
        matmul: str = "torch",
    ) -> None:
        super().__init__()
        _require_plain(vit)
        _require_fit(vit, spec)
        self.vit = cast(PlainViT, vit)
        self.spec = spec
        for name, value, known in (
            ("precision", precision, PRECISIONS),
            ("matmul", matmul, MATMULS),
        ):
            if value not in known:
                allowed = " or ".join(map(repr, known))
                raise ModelError(f"{name} = {value!r} is not allowed: it must be {allowed}.")
        self.precision, self.matmul = precision, matmul
        self.compiled = compiled
        self._fused = [block.attn.fused_attn for block in self.vit.blocks]

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.vit.patch_embed.patch_size[0]

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.vit.patch_embed.grid_size[0]

    @property
    def num_patches(self) -> int:
        """Patches per image."""
        return self.grid**2

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier head."""
        return self.vit.num_classes

    def patchify(self, images: Tensor) -> Tensor:
        """Cut images ``[B, C, H, W]`` into patches ``[B, N, C*p*p]``, row by row."""
        return F.unfold(images, self.patch_size, stride=self.patch_size).transpose(1, 2)

    def forward(
        self,
        images: Tensor,
        keep_idx: Tensor | None = None,
        **wanted: bool,
    ) -> ViTOutput:
        """Run on images ``[B, C, H, W]``, or only on their patches ``keep_idx`` ``[B, n]``.

        ``wanted`` is as in :meth:`forward_patches`.
        """
        patches = self.patchify(images)
        if keep_idx is not None:
            patches = patches.gather(1, keep_idx.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        return self.forward_patches(patches, keep_idx, **wanted)

    def forward_patches(
        self,
        patches: Tensor,
        position_idx: Tensor | None = None,
        *,
        patch_tokens: bool = False,
        patch_logits: bool = False,
        attention: bool = False,
    ) -> ViTOutput:
        """Run on patches ``[B, n, C*p*p]`` that stand at ``position_idx`` ``[B, n]``.

        ``None`` means all N patches in their own places. Without dropped patches the
        logits equal those of the wrapped timm model. ``patch_tokens``, ``patch_logits`` and
        ``attention`` say what is wanted beside the class token's: without the first two the last
        block does a sixth of its matrix products (with timm's usual MLP).
        """
        vit = self.vit
        run, run_class = run_block, run_class_token
        if self.compiled:
            run, run_class = compile_once(run), compile_once(run_class)
        all_tokens = patch_tokens or patch_logits
        with self.matmul_context(patches.device.type):
            tokens = vit.norm_pre(self._embed(patches, position_idx))
            packing = Packing.of(tokens)
            tokens = packing.pack(tokens)
            for block in vit.blocks[:-1]:
                tokens = run(block, tokens, packing.mask)
            last = vit.blocks[-1]
            if attention or not all_tokens:
                class_token, cls_attn = run_class(last, packing.unpack(tokens))
            if all_tokens:
                tokens = packing.unpack(run(last, tokens, packing.mask))
        tokens = vit.norm(tokens if all_tokens else class_token)
        features = vit.fc_norm(tokens[:, 0])
        patches_seen = tokens[:, vit.num_prefix_tokens :] if all_tokens else None
        return ViTOutput(
            logits=vit.head(vit.head_drop(features)),
            features=features,
            patch_tokens=patches_seen,
            patch_logits=vit.head(vit.fc_norm(patches_seen)) if patch_logits else None,
            cls_attn=cls_attn[:, vit.num_prefix_tokens :] if attention else None,
        )

    def rounded(self) -> "PatchViT":
        """Return a copy of a frozen model that keeps its embedding's and blocks' maps in bfloat16.

        The same answers and gradients, to the last bit; without it, half-width products round
        every weight anew in each pass. A ``float32`` model is returned as it is.
        """
        if self.precision == "float32":
            return self
        model = copy.deepcopy(self)
        maps = [layer for layer in model.vit.blocks.modules() if isinstance(layer, nn.Linear)]
        for layer in (model.vit.patch_embed.proj, *maps):
            layer.to(torch.bfloat16)
        return model

    def matmul_context(self, device: str) -> AbstractContextManager[object]:
        """Let matrix products and attention run in this model's precision, and way."""
        if self.precision == "float32":
            by_onednn = self.matmul == "onednn" and device == "cpu" and not self.compiled
            return OneDNN() if by_onednn else nullcontext()
        for block, fused in zip(self.vit.blocks, self._fused, strict=True):
            # A CPU's fused attention takes six times as long backwards in bfloat16 (torch 2.15).
            # Final for TorchScript alone, to timm.
            block.attn.fused_attn = fused and device != "cpu"  # type: ignore[misc]
        return torch.autocast(device, torch.bfloat16)

    def _embed(self, patches: Tensor, position_idx: Tensor | None) -> Tensor:
        """Embed, add positions by index, prepend class (and register) tokens: ``[B, 1+n, D]``."""
        vit = self.vit
        proj = vit.patch_embed.proj
        tokens = vit.patch_embed.norm(F.linear(patches, proj.weight.flatten(1), proj.bias))
        prefix: list[Tensor] = [t for t in (vit.cls_token, vit.reg_token) if t is not None]
        prefix_tokens = torch.cat(prefix, dim=1)
        positions = vit.pos_embed[0]
        if not vit.no_embed_class:
            prefix_tokens = prefix_tokens + positions[: vit.num_prefix_tokens]
            positions = positions[vit.num_prefix_tokens :]
        tokens = tokens + (positions if position_idx is None else positions[position_idx])
        tokens = torch.cat([prefix_tokens.expand(len(tokens), -1, -1), tokens], dim=1)
        dropped: Tensor = vit.pos_drop(tokens)
        return dropped


def _require_plain(vit: nn.Module) -> None:
    """Refuse models whose structure this wrapper doesn't reproduce."""
    problem = None
    if type(vit) is not VisionTransformer:
        problem = f"it is a {type(vit).__name__}, not timm's VisionTransformer"
    elif (
        vit.cls_token is None
        or vit.global_pool != "token"
        or getattr(vit, "attn_pool", None) is not None  # which its type denies may be None
    ):
        problem = "it doesn't classify by a class token"
    elif vit.pos_embed is None:
        problem = "it has no absolute position embeddings"
    elif type(vit.patch_embed) is not PatchEmbed or vit.patch_embed.proj.groups != 1:
        problem = "its patches aren't embedded by one linear map"
    elif vit.patch_embed.patch_size[0] != vit.patch_embed.patch_size[1]:
        problem = "its patches aren't square"
    elif vit.patch_embed.grid_size[0] != vit.patch_embed.grid_size[1]:
        problem = "its images aren't square"
    elif any(type(block) is not Block or type(block.attn) is not Attention for block in vit.blocks):
        problem = "its blocks aren't timm's plain ones"
    elif not len(vit.blocks):
        problem = "it has no blocks"
    elif any(not hasattr(block.mlp, "fc1") for block in vit.blocks):
        problem = "its blocks' MLPs aren't timm's plain ones"
    elif any(type(block.attn.qkv) is not nn.Linear for block in cast(PlainViT, vit).blocks):
        problem = "its queries, keys and values aren't one linear map"
    if problem:
        raise ModelError(
            f"This model can't be inverted patch by patch because {problem}: choose a plain "
            "timm ViT or DeiT such as 'deit_tiny_patch16_224' or 'vit_small_patch16_224' "
            "(model.name)."
        )


def _require_fit(vit: VisionTransformer, spec: InputSpec) -> None:
    """Refuse an image size that patches don't divide, or a spec of other images."""
    size, patch = vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0]
    channels = vit.patch_embed.proj.in_channels
    if size % patch:
        # timm would leave out the pixels at the border: rolls could not be exact.
        raise ModelError(
            f"data.image-size = {size} does not suit a model with patches of {patch} pixels: "
            f"choose a multiple of {patch}."
        )
    if (spec.size, spec.channels) != (size, channels):
        raise ModelError(
            f"The model takes images of {size} pixels and {channels} channels, but the input "
            f"spec says {spec.size} and {spec.channels}: make data.image-size and data.channels "
            "(the input spec) and the model agree."
        )
