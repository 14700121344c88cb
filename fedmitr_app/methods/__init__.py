"""One-shot methods on one seam: each turns the same uploads into a global model.

A method is a function from a :class:`Task` to a :class:`Fused`; it raises
``MethodUnavailable`` where the uploads lack what it needs.
"""

from fedmitr_app.methods.beside import beside
from fedmitr_app.methods.fedmitr import fedmitr
from fedmitr_app.methods.fused import Fused
from fedmitr_app.methods.registry import METHODS, Method
from fedmitr_app.methods.settings import MethodSettings
from fedmitr_app.methods.task import Task
from fedmitr_app.methods.uninverted import without_inversion

__all__ = [
    "METHODS",
    "Fused",
    "Method",
    "MethodSettings",
    "Task",
    "beside",
    "fedmitr",
    "without_inversion",
]
