"""Where the student starts, and what of it trains (choice: every option named)."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedmitr_app.config import DistillationConfig
from fedmitr_app.models import PatchViT
from fedmitr_app.teacher import ClientModel, Teacher


def initial_student(
    kind: str,
    model: PatchViT,
    clients: Sequence[ClientModel],
    merged: Mapping[str, Tensor],
    teacher: Teacher,
    images: Tensor,
) -> PatchViT:
    """Return a student of its own, ready to train.

    Parameters
    ----------
    kind : str
        ``initial``: θ₀; ``merged``: the uploads' merged model; ``best-client``: the client
        that agrees most with the teacher on ``images`` (no test data is looked at).
    model : PatchViT
        Holds θ₀; not changed.
    merged : Mapping[str, Tensor]
        The merged state, timm's keys.
    images : Tensor
        Synthetic images ``[n, C, H, W]`` for the choice of a client.
    """
    student = copy.deepcopy(model)
    if kind == "merged":
        student.vit.load_state_dict(merged)
    elif kind == "best-client":
        best = best_client(clients, teacher, images)
        student.vit.load_state_dict(clients[best].model.vit.state_dict())
    return student


@torch.no_grad()
def best_client(clients: Sequence[ClientModel], teacher: Teacher, images: Tensor) -> int:
    """Index of the client whose predictions agree most often with the teacher's."""
    labels = teacher(images).logits.argmax(-1)
    agreement = [
        (client.model(images).logits.argmax(-1) == labels).float().mean() for client in clients
    ]
    return int(torch.stack(agreement).argmax())


def choose_trainable(student: PatchViT, config: DistillationConfig) -> list[nn.Parameter]:
    """Freeze what ``distillation.train`` leaves out; return what trains."""
    vit = student.vit
    parts: dict[str, Sequence[nn.Module]] = {
        "all": [vit],
        "head": [vit.head],
        "last-blocks": [*vit.blocks[-config.last_blocks :], vit.norm, vit.fc_norm, vit.head],
    }
    vit.requires_grad_(False)
    for part in parts[config.train]:
        part.requires_grad_(True)
    return [parameter for parameter in vit.parameters() if parameter.requires_grad]
