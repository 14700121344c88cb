"""Made-up diagnoses."""

from fedmitr_app.diagnostics import Diagnosis
from fedmitr_app.diagnostics.curvature import Eigenvalue
from fedmitr_app.diagnostics.gap import Gap
from fedmitr_app.diagnostics.gradients import GradientFigures
from fedmitr_app.diagnostics.measurements import StudentFigures
from fedmitr_app.diagnostics.variance import Variance


def about(value, spread=0.01):
    """A figure without each of three parts in turn."""
    return (value - spread, value, value + spread)


def gradient_figures(*values):
    names = ("norm", "norm_variance", "norm_spread", "view_variance", "view_spread")
    left_out = {name: about(value) for name, value in zip(names, values)}
    return GradientFigures(*values, (0.1,), (0.2,), left_out)


def variance(total, relative):
    return Variance(total, relative, {"total": about(total), "relative": about(relative)})


def gap(*values):
    names = ("pool_accuracy", "pool_loss", "test_accuracy", "test_loss")
    return Gap(*values, {name: about(value, 0.003) for name, value in zip(names, values)})


def student(slope, curvature, converged, found):
    eigenvalue = Eigenvalue(curvature, 9, converged, about(curvature))
    return StudentFigures(slope, about(slope, 0.1), eigenvalue, found)


SMALL = gradient_figures(0.1, 0.2, 0.3, 0.4, 0.5)
LARGE = gradient_figures(1.0, 2.0, 3.0, 4.0, 5.0)
STEADY = student(1.0, -2.0, True, gap(0.9, 0.2, 0.8, 0.4))
SHAKY = student(2.0, 3.0, False, gap(0.9, 0.2, 0.6, 0.9))
WELL = Diagnosis(
    gradients={"dense": LARGE, "sparse": SMALL},
    variance={"hard": variance(3, 30), "relabel": variance(1, 10), "none": variance(2, 20)},
    students={"run": STEADY, "dense": SHAKY},
)
BADLY = Diagnosis(
    gradients={"dense": SMALL, "sparse": LARGE},
    variance={"hard": variance(1, 10), "relabel": variance(2, 20), "none": variance(1.5, 15)},
    students={"run": SHAKY, "dense": STEADY},
)
