"""Plain timm Vision Transformers that can run on a subset of their patches."""

from fedmitr_app.models.auto_precision import (
    DECIDED_KEYS,
    resolve_auto,
    settings_of,
    undecided,
    without_auto,
)
from fedmitr_app.models.compiled import require_compiler
from fedmitr_app.models.factory import architecture_of, build_vit
from fedmitr_app.models.from_weights import model_from_weights
from fedmitr_app.models.offloading import OffloadedViT
from fedmitr_app.models.patch_vit import PatchViT, ViTOutput
from fedmitr_app.models.spec import InputSpec
from fedmitr_app.models.stacked import StackedViT
from fedmitr_app.models.wrap import is_trained, spec_of, wrap_model

__all__ = [
    "DECIDED_KEYS",
    "InputSpec",
    "PatchViT",
    "StackedViT",
    "ViTOutput",
    "OffloadedViT",
    "architecture_of",
    "build_vit",
    "resolve_auto",
    "is_trained",
    "model_from_weights",
    "without_auto",
    "require_compiler",
    "settings_of",
    "spec_of",
    "wrap_model",
    "undecided",
]
