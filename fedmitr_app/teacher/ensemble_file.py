"""The ensemble on disk: which uploads it is, and how they are combined."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedmitr_app.config import COMBINATIONS
from fedmitr_app.models import InputSpec, PatchViT, architecture_of
from fedmitr_app.run_folder.global_model import build_described, complete
from fedmitr_app.teacher.ensemble import Teacher
from fedmitr_app.uploads import Upload, read_spool
from fedmitr_app.utils.files import Stored, save_tensors

ENSEMBLE_NAME, UPLOADS = "ensemble.safetensors", "uploads"
_COMBINED_BY = ("class_weights", "logit_shift", "logit_scale")


class Ensemble(nn.Module):
    """A teacher that answers as one model does: logits ``[B, classes]`` of model input."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.members = nn.ModuleList(teacher.models)
        self.teacher = teacher
        self.num_classes = teacher.models[0].num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Combine what the members say of ``[B, C, H, W]``."""
        return self.teacher(images).logits


def save_ensemble(
    folder: Path, teacher: Teacher, uploads: Sequence[Upload], class_names: Sequence[str]
) -> None:
    """Write ``ensemble.safetensors`` into a run folder.

    It names the members, most of them uploads that are in the folder's ``uploads/``, says how
    they are combined, and holds the weights of a member that is no upload: the merged model.

    Raises
    ------
    RunFolderError
        If it can't be written.
    """
    model, sent = teacher.models[0], {upload.client: upload.digest for upload in uploads}
    combined_by = {name: getattr(teacher, name) for name in _COMBINED_BY}
    tensors = {name: value for name, value in combined_by.items() if value is not None}
    for key, member in zip(teacher.keys, teacher.models, strict=True):
        if key not in sent:
            own = member.vit.state_dict()
            tensors |= {f"{key}/{name}": value.float() for name, value in own.items()}
    facts = {
        "members": [{"name": key, "upload": sent.get(key)} for key in teacher.keys],
        "combine": teacher.combine,
        "architecture": complete(architecture_of(model), model.vit.state_dict()),
        "input_spec": model.spec.to_dict(),
        "class_names": list(class_names),
    }
    save_tensors(folder / ENSEMBLE_NAME, tensors, facts, private=True)


def build_ensemble(folder: Path, stored: Stored, spec: InputSpec, device: torch.device) -> Ensemble:
    """Build the ensemble of a run folder from what :func:`save_ensemble` stored there.

    Raises
    ------
    UploadError
        If one of its uploads is damaged.
    KeyError, TypeError, ValueError, RuntimeError, ModelError
        For whatever else is missing or doesn't fit: the folder may be anybody's.
    """
    facts, tensors = stored.facts, stored.tensors
    uploads = {upload.digest: upload for upload in read_spool(folder / UPLOADS)}
    models, keys = [], []
    for member in facts["members"]:
        key, digest = str(member["name"]), member["upload"]
        if digest is not None and digest not in uploads:
            raise ValueError(f"the upload of {key} is not in {UPLOADS}/")
        state = _own(tensors, key) if digest is None else uploads[digest].load_state()
        vit = build_described(facts["architecture"], state)
        models.append(PatchViT(vit, spec).to(device))
        keys.append(key)
    found: dict[str, Any] = {
        name: tensors[name].to(device) for name in _COMBINED_BY if name in tensors
    }
    _check(facts["combine"], found, len(models), models[0].num_classes)
    return Ensemble(Teacher(tuple(models), facts["combine"], keys=tuple(keys), **found))


def _own(tensors: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """Return the weights that are stored under a member's name."""
    start = f"{key}/"
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }


def _check(combine: str, found: Mapping[str, Tensor], members: int, classes: int) -> None:
    if combine not in COMBINATIONS:
        raise ValueError("its models are combined in a way that there is not")
    for name, value in found.items():
        good = value.shape == (members, classes) or (
            name == "logit_scale" and value.shape == (members,)
        )
        if not good or not value.is_floating_point() or not value.isfinite().all():
            raise ValueError(f"its {name} are none of {members} models and {classes} classes")
    if bool((found["class_weights"] < 0).any()) or bool((found["class_weights"].sum(0) <= 0).any()):
        raise ValueError("its class_weights are no weights")
