"""The types of a plain ViT's parts, which timm's annotations leave open.

For a type checker the parts of a module are "a tensor or a module", and its optional ones may be
None. These names say what :class:`fedmitr_app.models.PatchViT` has made sure of; when the code
runs they are timm's own classes.
"""

from typing import TYPE_CHECKING

from timm.layers import Attention, Mlp, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import overload

    class PlainMlp(Mlp):
        """Or another kind that begins with ``fc1``."""

        fc1: nn.Linear
        act: nn.Module

    class PlainBlock(Block):
        """One transformer block."""

        norm1: nn.LayerNorm
        attn: Attention
        norm2: nn.LayerNorm
        mlp: PlainMlp

    class PlainBlocks(nn.Sequential):
        """At least one."""

        def __iter__(self) -> Iterator[PlainBlock]: ...
        @overload
        def __getitem__(self, idx: slice) -> "PlainBlocks": ...
        @overload
        def __getitem__(self, idx: int) -> PlainBlock: ...
        def __getitem__(self, idx: slice | int) -> "PlainBlocks | PlainBlock": ...

    class PlainEmbed(PatchEmbed):
        """Square patches of square images."""

        img_size: tuple[int, int]
        patch_size: tuple[int, int]
        grid_size: tuple[int, int]

    class PlainViT(VisionTransformer):
        """With a class token, absolute position embeddings, and a linear head."""

        patch_embed: PlainEmbed
        cls_token: nn.Parameter
        pos_embed: nn.Parameter
        blocks: PlainBlocks
        head: nn.Linear

else:
    PlainBlock, PlainViT = Block, VisionTransformer
