"""The uploads' weights as one model: federated averaging (McMahan et al., 2017), or a merge."""

from fedmitr_app.methods.registry import register
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.task import Task


@register(
    "fedavg",
    reads=["teacher"],
    averages=True,
    screens=False,
    paper="McMahan et al., AISTATS 2017",
)
def fedavg(task: Task) -> MethodResult:
    """Average the uploads by their numbers of examples."""
    return MethodResult(task.model_of(task.average))


@register("fedavg-uniform", reads=["teacher"], averages=True, screens=False)
def fedavg_uniform(task: Task) -> MethodResult:
    """Average the uploads, each counting for the same."""
    return MethodResult(task.model_of(task.averaged("uniform")))


@register("merged", reads=["merge", "teacher"], averages=True)
def merged(task: Task) -> MethodResult:
    """Merge the uploads as ``merge.*`` says: what a student starts from, and must beat."""
    return MethodResult(task.model_of(task.merged))
