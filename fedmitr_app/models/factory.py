"""Build the Vision Transformer that the configuration asks for."""

from pathlib import Path
from typing import Any

import timm
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from fedmitr_app.config import ModelConfig
from fedmitr_app.errors import ModelError
from fedmitr_app.models.auto_precision import require_decided
from fedmitr_app.models.patch_vit import PatchViT
from fedmitr_app.models.spec import InputSpec
from fedmitr_app.utils.files import existing_path, local_path
from fedmitr_app.utils.randomness import seeded_init

MLP_RATIO = 2.0  # of the small preset: half of timm's default, for speed on a CPU
# Of its position embeddings (choice). timm's 0.02 is a tenth of what patches are embedded as: a
# small shard takes epochs to tell places apart (docs/explanation/method.md).
POSITION_STD = 0.2
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def build_vit(config: ModelConfig, spec: InputSpec, num_classes: int, seed: int) -> PatchViT:
    """Build θ₀'s architecture and initial weights.

    Parameters
    ----------
    config : ModelConfig
        ``name`` is ``"small"`` (from scratch, sized by the other settings) or a timm name, with
        or without a tag such as ``vit_tiny_patch16_224.augreg_in21k``;
        ``weights`` is ``""`` (from scratch), ``"hub"``, or a checkpoint's path; ``"small"``
        always starts from scratch.
    spec : InputSpec
        Images to take; position embeddings of a checkpoint are resampled to its size.
    num_classes : int
        Size of the new head; a checkpoint's own head is dropped unless it fits.
    seed : int
        Run seed; the same seed draws the same initial weights.

    Raises
    ------
    ModelError
        For an unknown or unfit model, a missing or unreadable checkpoint, or a precision that is
        not decided yet.
    """
    require_decided(config)
    with seeded_init(seed, "model"):
        vit = (
            _small(config, spec, num_classes)
            if config.name == "small"
            else _from_timm(config, spec, num_classes)
        )
    return PatchViT(vit, spec, config.precision, matmul=config.matmul)


def architecture_of(model: PatchViT) -> dict[str, Any]:
    """Return what is needed to build the same architecture again, as JSON-able values."""
    vit = model.vit
    cfg = getattr(vit, "pretrained_cfg", None) or {}
    return {
        "name": cfg.get("architecture") or "small",
        "num_classes": vit.num_classes,
        "img_size": model.spec.size,
        "in_chans": model.spec.channels,
        "patch_size": model.patch_size,
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": vit.blocks[0].attn.num_heads,
        "mlp_ratio": vit.blocks[0].mlp.fc1.out_features / vit.embed_dim,
    }


def _small(config: ModelConfig, spec: InputSpec, num_classes: int) -> VisionTransformer:
    if config.weights:
        raise ModelError(
            f"model.weights = {config.weights!r} can't be used with model.name = 'small', which "
            "has no checkpoints: leave it empty, or set model.name to a timm name."
        )
    vit = VisionTransformer(
        img_size=spec.size,
        patch_size=config.patch_size,
        in_chans=spec.channels,
        num_classes=num_classes,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=MLP_RATIO,
    )
    assert vit.pos_embed is not None  # learnt, by timm's default
    nn.init.trunc_normal_(vit.pos_embed, std=POSITION_STD)
    return vit


def _from_timm(config: ModelConfig, spec: InputSpec, num_classes: int) -> Any:
    _require_known(config)
    path = None if config.weights in ("", "hub") else _checkpoint_path(config)
    overlay: dict[str, Any] = {}
    stored: dict[str, Tensor] = {}
    try:
        if path is not None:
            stored = load_state_dict(str(path))
            # timm keeps the checkpoint's head only if told that it has as many classes.
            head = stored.get("head.weight", ())
            overlay = {"file": str(path), "num_classes": len(head)}
        vit: Any = timm.create_model(
            config.name,
            pretrained=bool(config.weights),
            pretrained_cfg_overlay=overlay or None,
            num_classes=num_classes,
            img_size=spec.size,
            in_chans=spec.channels,
        )
        # A new head makes timm skip every key that it doesn't find, or has no place for.
        found = vit.state_dict() if path is None else checkpoint_filter_fn(stored, vit)
    except AssertionError as error:
        raise ModelError(
            f"model.name = {config.name!r} can't take data.image-size = {spec.size}: {error}."
        ) from error
    except Exception as error:
        # timm and the hub client raise many kinds; the user needs one sentence of each.
        raise ModelError(
            f"model.name = {config.name!r} could not be built with model.weights = "
            f"{config.weights!r} ({type(error).__name__}: {(str(error).splitlines() or [''])[0]}): "
            "check the file, or the network if it is 'hub', or set model.weights to a local path."
        ) from error
    _require_same_tensors(config, set(vit.state_dict()), set(found))
    return vit


def _require_known(config: ModelConfig) -> None:
    name, _, tag = config.name.partition(".")  # as timm writes "model.weights-it-was-trained-to"
    if name not in timm.list_models("vit_*") + timm.list_models("deit_*"):
        raise ModelError(
            f"model.name = {config.name!r} is not a ViT or DeiT that the installed timm "
            f"{timm.__version__} knows: choose 'small' or one of timm.list_models('vit_*'), "
            "timm.list_models('deit_*')."
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        known = ", ".join(repr(f"{name}.{known}") for known in tags)
        raise ModelError(
            f"model.name = {config.name!r} has a tag that the installed timm {timm.__version__} "
            f"doesn't know: it must be {name!r}{f', or one of {known}' if known else ''}."
        )


def _checkpoint_path(config: ModelConfig) -> Path:
    path = local_path("model.weights", config.weights, ModelError)
    if path.suffix not in WEIGHT_SUFFIXES:
        raise ModelError(
            f"model.weights = {config.weights!r} is not a checkpoint: it must be '' (from "
            f"scratch), 'hub', or the path of a file ending in {', '.join(WEIGHT_SUFFIXES)}."
        )
    existing_path("model.weights", config.weights, ModelError)
    if not path.is_file():
        raise ModelError(f"model.weights = {config.weights!r} is a folder: name the file in it.")
    return path


def _require_same_tensors(config: ModelConfig, wanted: set[str], found: set[str]) -> None:
    """Refuse a checkpoint of another model, but for its head: every part of it would count."""
    missing = sorted(key for key in wanted - found if not key.startswith("head."))
    extra = sorted(key for key in found - wanted if not key.startswith("head."))
    if not missing and not extra:
        return
    lacks = f"lacks {len(missing)} of the model's tensors, such as {missing[:1]}"
    holds = f"holds {len(extra)} that the model has no place for, such as {extra[:1]}"
    told = " and ".join([lacks] * bool(missing) + [holds] * bool(extra))
    raise ModelError(
        f"model.weights = {config.weights!r} is not a checkpoint of {config.name!r}: it {told}; "
        "choose the checkpoint that belongs to model.name."
    )
