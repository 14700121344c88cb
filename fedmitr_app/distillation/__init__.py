"""Distillation: from the pool of synthetic images to the global model."""

from fedmitr_app.distillation.distil import Distiller
from fedmitr_app.distillation.students import initial_student

__all__ = ["Distiller", "initial_student"]
