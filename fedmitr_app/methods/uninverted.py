"""Distillation on images that nobody inverted: the floor and the control (choice)."""

from dataclasses import replace

from fedmitr_app.methods.fedmitr import fedmitr
from fedmitr_app.methods.fused import Fused
from fedmitr_app.methods.settings import MethodSettings
from fedmitr_app.methods.task import Task


def without_inversion(ours: MethodSettings, start: str = "procedural") -> MethodSettings:
    """Take starting images as they come: neither inverted nor chosen.

    Picking the starts that the teacher reads most like a class is already part of the
    inversion, and the control must do without it.
    """
    plain = replace(ours.inversion, start=start, iterations=0, candidates=1, rounds=1)
    return replace(ours, inversion=plain)


def procedural(task: Task) -> Fused:
    """Distil on generic procedural images: the control that every inversion must beat."""
    return fedmitr(task.alter(without_inversion))


def noise(task: Task) -> Fused:
    """Distil on white noise: the floor."""
    return fedmitr(task.alter(lambda ours: without_inversion(ours, "white")))
