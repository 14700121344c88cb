"""The ensemble on disk: which uploads it is, and how they are combined."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedmitr_app.config import COMBINATIONS
from fedmitr_app.models import InputSpec, architecture_of, wrap_model
from fedmitr_app.run_folder.global_model import build_described, complete
from fedmitr_app.teacher.ensemble import Teacher
from fedmitr_app.uploads import Upload, read_spool
from fedmitr_app.uploads.rounds import UPLOADS
from fedmitr_app.utils.files import Stored, save_tensors
from fedmitr_app.utils.reading import require_folder
from fedmitr_app.utils.text import harmless

ENSEMBLE_NAME = "ensemble.safetensors"
MOST_MEMBERS, MOST_SCALE = 10_000, 1e6
"""Of a file that a run wrote there are far fewer, and what it scales and shifts logits by is far
smaller (choice)."""
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
    members = []
    for number, (key, member) in enumerate(zip(teacher.keys, teacher.models, strict=True)):
        # Once only: a client may call itself what the merged model is called, which comes last.
        members.append({"name": key, "upload": sent.pop(key, None)})
        if members[-1]["upload"] is None:
            own = member.vit.state_dict()
            tensors |= {f"{number}/{name}": value.float() for name, value in own.items()}
    facts = {
        "members": members,
        "combine": teacher.combine,
        "architecture": complete(architecture_of(model), model.vit.state_dict()),
        "input_spec": model.spec.to_dict(),
        "class_names": list(class_names),
    }
    save_tensors(folder / ENSEMBLE_NAME, tensors, facts, private=True)


def build_ensemble(folder: Path, stored: Stored, spec: InputSpec, device: torch.device) -> Ensemble:
    """Build the ensemble of a run folder from what :func:`save_ensemble` stored there.

    It answers in float32, also where the run's teacher did in half precision.

    Raises
    ------
    UploadError
        If one of its uploads is damaged.
    ValueError
        For whatever else is missing or doesn't fit: the folder may be anybody's. Nothing is built
        before what the file says of itself has been checked.
    OSError, KeyError, TypeError, RuntimeError, ModelError
        For what timm and torch make of an architecture and weights.
    """
    facts, tensors = stored.facts, stored.tensors
    members = _members(facts.get("members"))
    combined_by = {name: tensors[name].to(device) for name in _COMBINED_BY if name in tensors}
    _check(facts.get("combine"), combined_by, len(members))
    require_folder(folder / UPLOADS)
    uploads = {upload.digest: upload for upload in read_spool(folder / UPLOADS)}
    own: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, slash, parameter = name.partition("/")
        if slash:
            own.setdefault(number, {})[parameter] = value
    needed = {str(place) for place, (_, digest) in enumerate(members) if digest is None}
    if own.keys() != needed:
        raise ValueError("it holds weights of other models than its members")
    models = []
    for place, (key, digest) in enumerate(members):
        if digest is not None and digest not in uploads:
            raise ValueError(f"the upload of {key} is not in {UPLOADS}/")
        state = own[str(place)] if digest is None else uploads[digest].load_state()
        vit = build_described(facts["architecture"], state)
        models.append(wrap_model(vit, spec).to(device))
    if models[0].num_classes != combined_by["class_weights"].shape[1]:
        raise ValueError("its class_weights are of other classes than its models")
    keys = tuple(key for key, _ in members)
    teacher = Teacher(
        tuple(models),
        facts["combine"],
        combined_by["class_weights"],
        combined_by.get("logit_shift"),
        combined_by.get("logit_scale"),
        keys=keys,
    )
    found = Ensemble(teacher)
    noise = torch.rand((2, spec.channels, spec.size, spec.size), device=device)
    if not found(spec.normalise(noise)).isfinite().all():
        raise ValueError("its answers to noise aren't finite")
    return found


def _members(said: Any) -> list[tuple[str, str | None]]:
    """Return each member's name and its upload's digest, all of which must differ."""
    if not isinstance(said, list) or not 0 < len(said) <= MOST_MEMBERS:
        raise ValueError(f"its members are no list of 1 to {MOST_MEMBERS}")
    found: list[tuple[str, str | None]] = []
    for member in said:
        name = member.get("name") if isinstance(member, dict) else None
        digest = member.get("upload") if isinstance(member, dict) else None
        if not isinstance(name, str) or not (digest is None or isinstance(digest, str)):
            raise ValueError("a member of it has no name, or no digest of its upload")
        found.append((harmless(name), digest))
    digests = [digest for _, digest in found if digest is not None]
    if len(set(digests)) < len(digests):
        raise ValueError("two of its members are one upload")
    return found


def _check(combine: Any, found: Mapping[str, Tensor], members: int) -> None:
    if combine not in COMBINATIONS:
        raise ValueError("its models are combined in a way that there is not")
    if "class_weights" not in found or found["class_weights"].dim() != 2:
        raise ValueError("it has no class_weights")
    classes = found["class_weights"].shape[1]
    for name, value in found.items():
        good = value.shape == (members, classes) or (
            name == "logit_scale" and value.shape == (members,)
        )
        if not good or value.dtype != torch.float32 or not value.isfinite().all():
            raise ValueError(f"its {name} are none of {members} models and {classes} classes")
        if name != "class_weights" and bool((value.abs() > MOST_SCALE).any()):
            raise ValueError(f"its {name} are beyond all measure")
    total = found["class_weights"].sum(0)
    if bool((found["class_weights"] < 0).any()) or not bool(((total > 0) & total.isfinite()).all()):
        raise ValueError("its class_weights are no weights")
