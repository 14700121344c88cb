"""The global model on disk: its weights, and a JSON that says how to load them."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fedmitr_app.errors import ModelError
from fedmitr_app.utils.files import write_atomically, write_json

WEIGHTS_NAME = "global_model.safetensors"
DESCRIPTION_NAME = "global_model.json"
MOST = 10**5
"""Of any size in a description: pixels, classes, width."""
MOST_BLOCKS = 500


def save_global_model(
    folder: Path,
    state: Mapping[str, Tensor],
    architecture: Mapping[str, Any],
    input_spec: Mapping[str, Any],
    class_names: Sequence[str],
) -> Path:
    """Write ``global_model.safetensors`` and ``global_model.json`` into ``folder``.

    Parameters
    ----------
    folder : Path
        An existing folder.
    state : Mapping[str, Tensor]
        The model's state dict under timm's own keys, on any device.
    architecture : Mapping[str, Any]
        ``name`` ("small" or a timm name), ``num_classes``, ``img_size``, ``in_chans``,
        ``patch_size``, ``embed_dim``, ``depth``, ``num_heads``; for "small" anything
        else is passed on to timm's ``VisionTransformer`` as it is.
    input_spec : Mapping[str, Any]
        How images become inputs: size, channels, mean and std.
    class_names : Sequence[str]
        One name per output, in order.

    Returns
    -------
    Path
        The weights. The JSON's ``load`` is null when no two lines can load them.

    Raises
    ------
    RunFolderError
        When a file cannot be written.
    """
    # Clones, because safetensors refuses tensors that share memory.
    tensors = {
        key: value.detach().to("cpu", memory_format=torch.contiguous_format, copy=True).contiguous()
        for key, value in state.items()
    }
    architecture = complete(architecture, tensors)
    weights = folder / WEIGHTS_NAME
    write_atomically(weights, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    description = {
        "weights": WEIGHTS_NAME,
        "architecture": architecture,
        "input_spec": dict(input_spec),
        "input": "float images [B, C, H, W] in [0, 1], then (image - mean) / std per channel",
        "class_names": list(class_names),
        "load": load_lines(architecture) if _fits(architecture, tensors) else None,
    }
    write_json(folder / DESCRIPTION_NAME, description)
    return weights


def complete(architecture: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Add the width of a small model's MLP, which only its weights know."""
    hidden = state.get("blocks.0.mlp.fc1.weight")
    if architecture["name"] != "small" or "mlp_ratio" in architecture or hidden is None:
        return dict(architecture)
    return {**architecture, "mlp_ratio": hidden.shape[0] / hidden.shape[1]}


def _fits(architecture: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Say whether the lines to load build a model that takes these weights.

    A model that someone built by hand may be no architecture that has a name; then
    saying nothing is better than two lines that fail.
    """
    module, builder, arguments, keywords = _call(architecture)
    try:
        with torch.device("meta"):  # shapes only: no memory, no time
            model = getattr(importlib.import_module(module), builder)(*arguments, **keywords)
    except (TypeError, ValueError, RuntimeError, AssertionError):
        return False
    built = {key: value.shape for key, value in model.state_dict().items()}
    return built == {key: value.shape for key, value in state.items()}


def build_described(
    architecture: Mapping[str, Any], state: Mapping[str, Tensor]
) -> VisionTransformer:
    """Build the model that a ``global_model.json`` describes, with its weights.

    Both may be anybody's: no more memory is taken than the weights have.

    Raises
    ------
    ModelError
        If it describes none of the models that this package writes.
    """
    sizes = {key: value for key, value in architecture.items() if key != "name"}
    name = architecture.get("name")
    known = name == "small" or name in timm.list_models(["vit_*", "deit_*"])
    plain = all(isinstance(value, (int, float)) and 0 < value <= MOST for value in sizes.values())
    deep = sizes.get("depth", 1) > MOST_BLOCKS if plain else True
    if not known or deep or not {"num_classes", "img_size", "in_chans"} <= sizes.keys():
        raise ModelError("its architecture is none that a run writes")
    module, builder, arguments, keywords = _call(architecture)
    with torch.device("meta"):  # shapes only
        model: VisionTransformer = getattr(importlib.import_module(module), builder)(
            *arguments, **keywords
        )
    model.load_state_dict(state, assign=True)
    return model


def load_lines(architecture: Mapping[str, Any]) -> list[str]:
    """Return the two lines of Python that load the model, run in its own folder.

    They need timm and safetensors, and nothing of this package.
    """
    module, builder, arguments, keywords = _call(architecture)
    shown = [repr(value) for value in arguments]
    shown += [f"{key}={value!r}" for key, value in keywords.items()]
    return [
        f"from {module} import {builder}; model = {builder}({', '.join(shown)}).eval()",
        f"from safetensors.torch import load_model; load_model(model, {WEIGHTS_NAME!r})",
    ]


def _call(architecture: Mapping[str, Any]) -> tuple[str, str, list[Any], dict[str, Any]]:
    """Return the module, the builder in it, and its arguments."""
    name = architecture["name"]
    if name == "small":
        keywords = {key: value for key, value in architecture.items() if key != "name"}
        return "timm.models.vision_transformer", "VisionTransformer", [], keywords
    # The rest (patch size, width, depth, heads) is what a timm name stands for.
    keywords = {key: architecture[key] for key in ("num_classes", "img_size", "in_chans")}
    return "timm", "create_model", [name], keywords
