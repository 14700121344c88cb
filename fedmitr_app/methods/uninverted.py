"""Distillation on images that nobody inverted: the floor and the control (choice)."""

from dataclasses import replace

from fedmitr_app.methods.fedmitr import fedmitr
from fedmitr_app.methods.registry import register
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.settings import MethodSettings
from fedmitr_app.methods.task import Task


def without_inversion(ours: MethodSettings) -> MethodSettings:
    """Take the run's own starting images as they come: neither inverted nor chosen.

    Picking the starts that the teacher reads most like a class is already part of the
    inversion, and the control must do without it.
    """
    plain = replace(ours.inversion, iterations=0, candidates=1)
    return replace(ours, inversion=plain)


@register("uninverted")
def uninverted(task: Task) -> MethodResult:
    """Distil on the images that an inversion would start from: the control it must beat."""
    return fedmitr(task.alter(without_inversion))


@register("noise")
def noise(task: Task) -> MethodResult:
    """Distil on white noise: the floor."""

    def white(ours: MethodSettings) -> MethodSettings:
        inversion = replace(ours.inversion, initial_images="white")
        return without_inversion(replace(ours, inversion=inversion))

    return fedmitr(task.alter(white))
