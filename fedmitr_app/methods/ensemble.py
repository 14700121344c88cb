"""The bare ensemble: keep every upload; the ceiling that distillation aims at."""

from fedmitr_app.methods.fused import Fused
from fedmitr_app.methods.registry import register
from fedmitr_app.methods.task import Task


@register("ensemble", reads=["merge", "teacher"])
def ensemble(task: Task) -> Fused:
    """Answer with all clients, combined as ``teacher.combine`` says."""
    return Fused(model=None, teacher=task.teacher)
