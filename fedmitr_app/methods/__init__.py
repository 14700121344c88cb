"""One-shot methods on one seam: each turns the same uploads into a global model.

A method is a function from a :class:`Task` to a :class:`MethodResult`, registered with what there
is to know of it (:mod:`fedmitr_app.methods.registry`).
"""

import importlib
import pkgutil

from fedmitr_app.methods.background import run_in_background
from fedmitr_app.methods.fedmitr import fedmitr
from fedmitr_app.methods.registry import (
    METHODS,
    Method,
    check_method,
    find_method,
    known_methods,
    register,
)
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.running import drop_unusable, run_with_control
from fedmitr_app.methods.settings import MethodSettings, settings_for
from fedmitr_app.methods.task import Task
from fedmitr_app.methods.uninverted import without_inversion

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)  # a file that holds a method registers it

__all__ = [
    "METHODS",
    "MethodResult",
    "Method",
    "MethodSettings",
    "Task",
    "check_method",
    "fedmitr",
    "find_method",
    "known_methods",
    "register",
    "run_in_background",
    "run_with_control",
    "drop_unusable",
    "settings_for",
    "without_inversion",
]
