"""The bare ensemble: keep every upload; the ceiling that distillation aims at."""

from fedmitr_app.methods.registry import register
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.task import Task


@register("ensemble", reads=["merge", "teacher"])
def ensemble(task: Task) -> MethodResult:
    """Answer with all clients, combined as ``teacher.combine`` says."""
    return MethodResult(model=None, teacher=task.teacher)
