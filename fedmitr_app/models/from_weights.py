"""A model around weights that came from elsewhere."""

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from fedmitr_app.config import ModelConfig
from fedmitr_app.errors import ModelError
from fedmitr_app.models.factory import build_vit
from fedmitr_app.models.patch_vit import PatchViT
from fedmitr_app.models.spec import InputSpec


def model_from_weights(
    state: Mapping[str, Tensor], config: ModelConfig, spec: InputSpec, seed: int
) -> PatchViT:
    """Return the model that a client's settings describe, with the server's weights.

    Its number of classes is what the weights say.

    Raises
    ------
    ModelError
        If the weights are of another model.
    """
    if "head.weight" not in state:
        raise ModelError("The server's weights have no 'head.weight': it must send a timm ViT's.")
    # θ₀ comes with the message: a client needs no checkpoint of its own.
    from_scratch = dataclasses.replace(config, weights="")
    model = build_vit(from_scratch, spec, len(state["head.weight"]), seed)
    try:
        model.vit.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"The server's weights don't fit this client's model.name = {config.name!r}"
            f" ({str(error).splitlines()[-1].strip()}): give both the same model.* and data.* "
            "settings."
        ) from error
    return model
