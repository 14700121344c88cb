"""What the paper's theory claims, measured on one run.

``fedmitr diagnose RUN_DIR`` does it for a finished run.
"""

from fedmitr_app.diagnostics.claims import Verdict, verdicts
from fedmitr_app.diagnostics.diagnose import Distilled, Sizes, diagnose, distil_dense
from fedmitr_app.diagnostics.likeness import Likeness, likeness, target_share
from fedmitr_app.diagnostics.measurements import Diagnosis

__all__ = [
    "Diagnosis",
    "Distilled",
    "Likeness",
    "Sizes",
    "Verdict",
    "diagnose",
    "distil_dense",
    "likeness",
    "target_share",
    "verdicts",
]
