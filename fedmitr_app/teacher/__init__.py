"""The ensemble of uploaded models, which teaches the student."""

from fedmitr_app.teacher.combine import combine_logits
from fedmitr_app.teacher.ensemble import ClientModel, Teacher, TeacherOutput, head_shares
from fedmitr_app.teacher.ensemble_file import ENSEMBLE_NAME, Ensemble, build_ensemble, save_ensemble
from fedmitr_app.teacher.probing import priors_of, probe
from fedmitr_app.teacher.screening import Trust, judge_answers, same_answers

__all__ = [
    "ENSEMBLE_NAME",
    "Ensemble",
    "build_ensemble",
    "save_ensemble",
    "ClientModel",
    "Teacher",
    "TeacherOutput",
    "Trust",
    "combine_logits",
    "head_shares",
    "priors_of",
    "probe",
    "same_answers",
    "judge_answers",
]
