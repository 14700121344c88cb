"""The uploads' weights as one model: federated averaging (McMahan et al., 2017), or a merge."""

import copy
from collections.abc import Mapping

from torch import Tensor

from fedmitr_app.methods.registry import register
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.task import Task
from fedmitr_app.models import PatchViT


@register(
    "fedavg",
    reads=["teacher"],
    averages=True,
    screens=False,
    paper="McMahan et al., AISTATS 2017",
)
def fedavg(task: Task) -> MethodResult:
    """Average the uploads by their numbers of examples."""
    return MethodResult(_loaded(task, task.average))


@register("fedavg-uniform", reads=["teacher"], averages=True, screens=False)
def fedavg_uniform(task: Task) -> MethodResult:
    """Average the uploads, each counting for the same."""
    return MethodResult(_loaded(task, task.averaged("uniform")))


@register("merged", reads=["merge", "teacher"], averages=True)
def merged(task: Task) -> MethodResult:
    """Merge the uploads as ``merge.*`` says: what a student starts from, and must beat."""
    return MethodResult(_loaded(task, task.merged))


def _loaded(task: Task, state: Mapping[str, Tensor]) -> PatchViT:
    model = copy.deepcopy(task.model)
    model.vit.load_state_dict(state)
    return model.to(task.device).eval()
