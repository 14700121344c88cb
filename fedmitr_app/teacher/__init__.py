"""The ensemble of uploaded models, which teaches the student."""

from fedmitr_app.teacher.combine import combine_logits
from fedmitr_app.teacher.ensemble import ClientModel, Teacher, TeacherOutput
from fedmitr_app.teacher.probing import probe_priors

__all__ = ["ClientModel", "Teacher", "TeacherOutput", "combine_logits", "probe_priors"]
