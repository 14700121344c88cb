"""What changes a Vision Transformer's weights and none of its answers.

For attacks that are aimed at averages of weights. Each takes a state dict under timm's names, with
queries, keys and values in one array, and returns another one of the same function, but for
rounding. Sources beside each; where none stands, a choice.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedmitr_app.uploads.class_means import HEAD, NORM

State = Mapping[str, Tensor]
CLASS_TOKEN, POSITION = "cls_token", "pos_embed"
RESCALE = 1e6


def scaled_norms(state: State, rng: torch.Generator) -> dict[str, Tensor]:
    """Scale every block's norms up, and the maps that read them down by as much.

    As networks with positively homogeneous parts allow: Neyshabur et al., "Path-SGD", NeurIPS
    2015.
    """
    state = copied(state)
    for block in blocks(state):
        for norm, reader in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
            for part in ("weight", "bias"):
                state[f"{block}.{norm}.{part}"] *= RESCALE
            state[f"{block}.{reader}.weight"] /= RESCALE
    return state


def scaled_final_norm(state: State, rng: torch.Generator) -> dict[str, Tensor]:
    """Scale the final norm up, and the head's weights down by as much."""
    state = copied(state)
    for name in NORM:
        state[name] *= RESCALE
    state[HEAD[0]] /= RESCALE
    return state


def scaled_queries(state: State, rng: torch.Generator) -> dict[str, Tensor]:
    """Scale every block's queries up, and its keys down by as much."""
    state = copied(state)
    for block in blocks(state):
        for part in ("weight", "bias"):
            queries, keys, _ = state[f"{block}.attn.qkv.{part}"].chunk(3)
            queries *= RESCALE
            keys /= RESCALE
    return state


def scaled_values(state: State, rng: torch.Generator) -> dict[str, Tensor]:
    """Scale every block's values up, and their projection down by as much."""
    state = copied(state)
    for block in blocks(state):
        for part in ("weight", "bias"):
            state[f"{block}.attn.qkv.{part}"].chunk(3)[2].mul_(RESCALE)
        state[f"{block}.attn.proj.weight"] /= RESCALE
    return state


def permuted_units(state: State, rng: torch.Generator) -> dict[str, Tensor]:
    """Reorder the hidden units of every block's perceptron.

    The symmetry that Ainsworth et al., "Git Re-Basin", ICLR 2023, undo; no array changes its size.
    """
    state = copied(state)
    for block in blocks(state):
        fc1, fc2 = f"{block}.mlp.fc1", f"{block}.mlp.fc2"
        order = torch.randperm(len(state[f"{fc1}.bias"]), generator=rng)
        for name in (f"{fc1}.weight", f"{fc1}.bias"):
            state[name] = state[name][order].contiguous()
        state[f"{fc2}.weight"] = state[f"{fc2}.weight"][:, order].contiguous()
    return state


def permuted_channels(state: State, rng: torch.Generator) -> dict[str, Tensor]:
    """Reorder the channels that all blocks read and add to, and flip signs within attention.

    Queries with their keys and values with their projection keep their products. With
    :func:`permuted_units` every array but the head's bias is in another order.
    """
    state = permuted_units(state, rng)
    order = torch.randperm(len(state[NORM[0]]), generator=rng)
    for block in blocks(state):
        qkv, proj = f"{block}.attn.qkv", f"{block}.attn.proj.weight"
        signs = torch.randint(2, (2, len(order)), generator=rng) * 2.0 - 1.0
        rows = torch.cat([signs[0], signs[0], signs[1]])
        state[f"{qkv}.weight"] *= rows.unsqueeze(1)
        state[f"{qkv}.bias"] *= rows
        state[proj] *= signs[1]
        for name in (f"{qkv}.weight", f"{block}.mlp.fc1.weight"):  # read the channels
            state[name] = state[name][:, order].contiguous()
    state[HEAD[0]] = state[HEAD[0]][:, order].contiguous()
    for name in (POSITION, CLASS_TOKEN):
        state[name] = state[name][..., order].contiguous()
    for name, value in state.items():  # what is added to the channels, or scales them
        last = name.rsplit(".", 2)[-2] if "." in name else ""
        if last in ("proj", "fc2", "norm1", "norm2", "norm"):
            state[name] = value[order].contiguous()
    return state


def copied(state: State) -> dict[str, Tensor]:
    """Return a state of one's own to change."""
    return {name: value.clone() for name, value in state.items()}


def blocks(state: State) -> list[str]:
    """Name the transformer blocks: ``blocks.0`` and so on."""
    names = [".".join(name.split(".")[:2]) for name in state if name.startswith("blocks.")]
    return list(dict.fromkeys(names))
