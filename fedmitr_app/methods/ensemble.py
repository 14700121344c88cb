"""The bare ensemble: keep every upload; the ceiling that distillation aims at."""

from fedmitr_app.methods.task import Fused, Task


def ensemble(task: Task) -> Fused:
    """Answer with all clients, combined as ``teacher.combine`` says."""
    return Fused(model=None, teacher=task.teacher)
