"""What the paper's theory claims, measured on one run.

``python -m fedmitr_app.diagnostics RUN_DIR`` does it for a finished run.
"""

from fedmitr_app.diagnostics.claims import Verdict, verdicts
from fedmitr_app.diagnostics.diagnose import Diagnosis, Distilled, Sizes, diagnose, distil_dense

__all__ = [
    "Diagnosis",
    "Distilled",
    "Sizes",
    "Verdict",
    "diagnose",
    "distil_dense",
    "verdicts",
]
