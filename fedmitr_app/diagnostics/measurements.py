"""Everything that a diagnosis measures, in one place."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedmitr_app.diagnostics.curvature import Eigenvalue
from fedmitr_app.diagnostics.gap import Gap
from fedmitr_app.diagnostics.gradients import GradientFigures
from fedmitr_app.diagnostics.variance import Variance


@dataclass(frozen=True)
class StudentFigures:
    """One student.

    Attributes
    ----------
    lipschitz : float
        Largest norm of an input gradient over its pool.
    largest : tuple[float, ...]
        The same over each of some parts of the pool.
    curvature : Eigenvalue
        Of its mean loss on some images of its pool.
    gap : Gap | None
        None without a test set.
    """

    lipschitz: float
    largest: tuple[float, ...]
    curvature: Eigenvalue
    gap: Gap | None


@dataclass(frozen=True)
class Diagnosis:
    """All figures of one run.

    Attributes
    ----------
    gradients : Mapping[str, GradientFigures] | None
        Of the ``dense`` and the ``sparse`` inversion; None if the run inverts nothing.
    variance : Mapping[str, Variance]
        Of the run's student by what its tokens are taught: ``hard``, ``relabel``, ``none``.
    students : Mapping[str, StudentFigures]
        ``run``: the run's own; ``dense``, if there is one: distilled without token labels on
        densely inverted images.
    """

    gradients: Mapping[str, GradientFigures] | None
    variance: Mapping[str, Variance]
    students: Mapping[str, StudentFigures]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, under the names above."""
        return asdict(self)
