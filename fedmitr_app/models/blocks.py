"""How timm's transformer blocks are run: for every token, or the last one for the class alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmitr_app.models.typed import PlainBlock


def run_block(block: PlainBlock, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Run one timm block on tokens ``[B, T, D]``; ``mask`` is added to attention's scores."""
    passed: Tensor = block(tokens, attn_mask=mask)
    return passed


def run_class_token(block: PlainBlock, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Run one timm block on tokens ``[B, T, D]`` as far as its class token needs it.

    In the last block nobody reads what becomes of the other tokens, unless it is asked for:
    they are keys and values, and all else is done for one token. Equal to the whole block up to
    rounding, with gradients, for a sixth of its matrix products (with timm's usual MLP).

    Returns
    -------
    tuple[Tensor, Tensor]
        The class token ``[B, 1, D]``, and its attention to every token, mean over heads,
        ``[B, T]``.
    """
    attn, normed = block.attn, block.norm1(tokens)
    first, heads = normed[:, :1], (attn.num_heads, attn.head_dim)
    biases = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.split(attn.attn_dim)
    query, key, value = (
        F.linear(seen, weight, bias).unflatten(-1, heads)  # [B, 1 or T, heads, head_dim]
        for seen, weight, bias in zip(
            (first, normed, normed), attn.qkv.weight.split(attn.attn_dim), biases, strict=True
        )
    )
    shares = class_attention(attn.q_norm(query) * attn.scale, attn.k_norm(key), tokens.dtype)
    mixed = (attn.attn_drop(shares).unsqueeze(-1) * value).sum(1, keepdim=True).flatten(2)
    mixed = attn.norm(mixed)
    if attn.gate is not None:
        mixed = mixed * attn.gate(first).sigmoid()
    mixed = attn.proj_drop(attn.proj(mixed))
    token = tokens[:, :1] + block.drop_path1(block.ls1(mixed))
    token = token + block.drop_path2(block.ls2(block.mlp(block.norm2(token))))
    return token, shares.mean(2)


def class_attention(query: Tensor, key: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the class token's attention, ``[B, T, heads]``.

    One row of scores, without matrix products: those of single rows would want everything turned
    and copied, which takes longer on a CPU.

    Parameters
    ----------
    query, key : Tensor
        ``[B, 1, heads, head_dim]``, scaled, and ``[B, T, heads, head_dim]``.
    dtype : torch.dtype
        Of the tokens, in which shares are worked out also after half-width products.
    """
    return (query * key).sum(-1).to(dtype).softmax(1)
