"""Sparse inversion that stops patches by chance: what attention's choice is worth.

A control of Sparse Model Inversion (Hu et al., ICML 2024).
"""

from dataclasses import replace

from fedmitr_app.errors import MethodUnavailable
from fedmitr_app.methods.fedmitr import fedmitr
from fedmitr_app.methods.registry import register
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.settings import MethodSettings
from fedmitr_app.methods.task import Task


def settings(ours: MethodSettings) -> MethodSettings:
    """As many patches stop at the same times, others; all else equal."""
    return replace(ours, inversion=replace(ours.inversion, schedule="random"))


@register("random-patches", makes_images=True, paper="control of Hu et al., ICML 2024")
def random_patches(task: Task) -> MethodResult:
    """Invert as FedMITR does, but keep patches by chance.

    Raises
    ------
    MethodUnavailable
        If attention itself is to say how many patches stop.
    """
    if task.settings.inversion.schedule == "automatic":
        raise MethodUnavailable(
            "chance can't say how many patches stop: set inversion.schedule = 'sparse'"
        )
    return fedmitr(task.alter(settings))
