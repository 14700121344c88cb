"""A model that somebody else made: taken, or refused before any client trains it."""

import copy
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.layers import DropPath, PatchDropout
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedmitr_app.errors import ModelError
from fedmitr_app.models.patch_vit import PatchViT
from fedmitr_app.models.spec import InputSpec

_RATES = {nn.modules.dropout._DropoutNd: "p", DropPath: "drop_prob", PatchDropout: "prob"}
_TORCHVISION = {768: "base", 1024: "large", 1280: "huge"}
"""Their width to timm's name of the size."""
TOLERANCE = 1e-3
"""How far answers may be apart, as a share of the largest; rounding takes 1e-6 (choice)."""


def wrap_model(vit: PatchViT | VisionTransformer, spec: InputSpec | None = None) -> PatchViT:
    """Return somebody's model, wrapped and tried on two images of noise; on the CPU, or a copy.

    Parameters
    ----------
    vit : PatchViT | VisionTransformer
        Not changed.
    spec : InputSpec | None
        The images that it takes; None reads them off the model, see :func:`spec_of`.

    Raises
    ------
    ModelError
        If it is of another kind, takes other images than ``spec`` says, draws random numbers
        while it trains, isn't float32 or finite, or doesn't answer with ``num_classes`` numbers
        as its wrapped form does.
    """
    if isinstance(vit, PatchViT):
        if spec not in (None, vit.spec):
            raise ModelError(
                f"input_spec = {spec} is not what the PatchViT takes ({vit.spec}): leave it out, "
                "or pass the timm model."
            )
        model = vit
    elif isinstance(vit, VisionTransformer):
        model = PatchViT(vit, spec or spec_of(vit))
    else:
        raise ModelError(_of_another_kind(vit))
    _require_numbers(model.vit)
    _require_steady(model.vit)
    _require_answers(model)
    elsewhere = any(parameter.device.type != "cpu" for parameter in model.vit.parameters())
    return copy.deepcopy(model).cpu() if elsewhere else model


def is_trained(vit: VisionTransformer) -> bool:
    """Say whether a model has been trained: its norms are then no longer all ones and zeros."""
    norms = [module for module in vit.modules() if isinstance(module, nn.LayerNorm)]
    return any(
        bool((norm.weight != 1).any()) or bool((norm.bias != 0).any())
        for norm in norms
        if norm.weight is not None and norm.bias is not None
    )


def spec_of(vit: VisionTransformer) -> InputSpec:
    """Return the images that a timm model takes: size and channels as it is built.

    Mean and deviation are those that timm records of a pre-trained model (``pretrained_cfg``);
    of a model that nobody has trained 0.5 both: pixels in [-1, 1] (choice).
    """
    size, channels = vit.patch_embed.img_size[0], vit.patch_embed.proj.in_channels
    mean, std = (0.5,), (0.5,)
    record = getattr(vit, "pretrained_cfg", None)
    if record and is_trained(vit):
        known = resolve_model_data_config(vit)
        if len(known["mean"]) == len(known["std"]) == channels:
            mean, std = tuple(known["mean"]), tuple(known["std"])
    return InputSpec(size, channels, mean, std)


def _of_another_kind(model: Any) -> str:
    """Say what was passed in place of a timm ViT, and what to do about it."""
    kind, origin = type(model).__name__, type(model).__module__.partition(".")[0]
    for inside in ("_orig_mod", "module"):  # torch.compile, DataParallel and their like
        if isinstance(getattr(model, inside, None), VisionTransformer):
            return f"This is a {kind} around a timm model: pass what it holds, model.{inside}."
    if kind == "VisionTransformer" and origin == "torchvision":
        size = _TORCHVISION.get(model.hidden_dim)
        name = f"vit_{size}_patch{model.patch_size}_224" if size else "vit_base_patch16_224"
        return (
            "This is torchvision's VisionTransformer, whose parts have other names than timm's: "
            f"have server and clients build timm.create_model({name!r}, "
            f"num_classes={model.num_classes}, img_size={model.image_size}) instead."
        )
    if origin == "transformers":
        return (
            f"This is a {kind} of Hugging Face's transformers, whose parts have other names than "
            "timm's: have server and clients build timm's model of the same architecture instead, "
            "such as timm.create_model('vit_base_patch16_224', num_classes=10)."
        )
    return (
        f"FedMITR inverts Vision Transformers, not a {kind}: pass a plain timm ViT or DeiT, such "
        "as timm.create_model('deit_tiny_patch16_224', num_classes=10)."
    )


def _require_numbers(vit: nn.Module) -> None:
    """Refuse weights that aren't finite float32 numbers."""
    for name, value in vit.state_dict().items():
        if value.is_meta:
            raise ModelError(f"The model's {name} has no values (device 'meta'): load its weights.")
        if value.is_floating_point() and value.dtype != torch.float32:
            kind = str(value.dtype).removeprefix("torch.")
            raise ModelError(
                f"The model's {name} is {kind}, and it must be float32: call model.float() (and "
                "wrap it with PatchViT(..., precision='bfloat16') for half-width products)."
            )
        if not value.isfinite().all():
            raise ModelError(f"The model's {name} holds NaN or infinity: load its weights anew.")


def _require_steady(vit: nn.Module) -> None:
    """Refuse what is drawn, or kept, from batch to batch: one seed must give one student."""
    for name, module in vit.named_modules():
        for kind, rate in _RATES.items():
            if isinstance(module, kind) and getattr(module, rate):
                raise ModelError(
                    f"The model's {name} drops a share of {getattr(module, rate):g} at random, by "
                    "no seed of the run, while the student trains: build the server's model "
                    "without dropout and stochastic depth (the clients' may have it: weights are "
                    "the same)."
                )
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ModelError(
                f"The model's {name} normalises over the batch, which mixes images: build it with "
                "LayerNorm, as timm's plain ViTs are."
            )


@torch.no_grad()
def _require_answers(model: PatchViT) -> None:
    """Refuse a model that answers otherwise than it says, or than it does when it is wrapped."""
    vit, spec = model.vit, model.spec
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand((2, spec.channels, spec.size, spec.size), generator=draw)
    images = spec.normalise(noise).to(next(vit.parameters()).device)
    training, compiled = vit.training, model.compiled
    vit.eval()
    model.compiled = False  # not for two images
    try:
        own = vit(images)
        wrapped = model(images).logits
    except Exception as error:  # somebody's own module may raise anything
        said = next(iter(str(error).splitlines()), "")
        raise ModelError(
            f"The model can't answer images {list(images.shape)} ({type(error).__name__}: {said}): "
            "try model(images) yourself."
        ) from error
    finally:
        vit.train(training)
        model.compiled = compiled
    classes = own.shape[-1] if isinstance(own, Tensor) and own.ndim == 2 else 0
    if classes != vit.num_classes or classes < 2:
        raise ModelError(
            f"The model's num_classes = {vit.num_classes}, but its head gives {classes} "
            "number(s) for an image: both must be the number of classes, at least 2, as "
            "timm.create_model(..., num_classes=10) or model.reset_classifier(10) makes them."
        )
    if not isinstance(vit.head, nn.Linear) or vit.head.bias is None:
        raise ModelError(
            "The model's head must be one nn.Linear with a bias, as timm's is, and it is "
            f"{type(vit.head).__name__}(bias={getattr(vit.head, 'bias', None) is not None}): "
            "call model.reset_classifier(num_classes)."
        )
    if not own.isfinite().all():
        raise ModelError("The model's answers to noise aren't finite: load its weights anew.")
    # Half-width products round by design.
    apart = (own - wrapped).abs().max() / own.abs().max().clamp_min(1e-6)
    if model.precision == "float32" and apart > TOLERANCE:
        raise ModelError(
            f"The model's answers differ by {100 * apart:.2g} % of the largest when it is run "
            "patch by patch: it does more than timm's plain ViT (a hook, or a forward of its own), "
            "which must be taken away."
        )
