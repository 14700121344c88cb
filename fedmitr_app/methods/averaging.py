"""One round of federated averaging (McMahan et al., AISTATS 2017)."""

import copy
from collections.abc import Mapping

from torch import Tensor

from fedmitr_app.methods.task import Fused, Task
from fedmitr_app.models import PatchViT


def fedavg(task: Task) -> Fused:
    """Average the uploads by their numbers of examples."""
    return Fused(_loaded(task, task.average))


def fedavg_uniform(task: Task) -> Fused:
    """Average the uploads, each counting for the same."""
    return Fused(_loaded(task, task.averaged("uniform")))


def _loaded(task: Task, state: Mapping[str, Tensor]) -> PatchViT:
    model = copy.deepcopy(task.model)
    model.vit.load_state_dict(state)
    return model.to(task.device).eval()
