"""DENSE: "DENSE: Data-Free One-Shot Federated Learning" (Zhang et al., NeurIPS 2022).

The paper's: a generator, re-initialised each turn, learns images that the ensemble reads as
their labels (cross-entropy), that match the clients' BatchNorm statistics, and on which student
and ensemble decide differently (weight ``generator.disagreement``); the student distils the
ensemble's soft labels on all images so far.

Left out: the BatchNorm term. It compares a batch with the running means and variances that the
clients' BatchNorm layers have stored, and a ViT has LayerNorm, which stores none. Without it
nothing but the generator's architecture holds the images near natural ones: DENSE is weaker
here than on the convolutional networks it was made for.

Choice: the ensemble is the task's teacher (``teacher.combine = "mean-logits"`` is the paper's),
and the student that is returned trains as every method's does, on the finished pool, with fewer
and larger turns than the paper's hundreds. More in :mod:`fedmitr_app.methods.rivals.generator`.
"""

from torch import Tensor

from fedmitr_app.distillation.losses import soft_label_loss
from fedmitr_app.inversion.losses import cross_entropy
from fedmitr_app.methods.registry import DISTILS, register
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.rivals.generator import Objective, generate_and_distil
from fedmitr_app.methods.task import Task


@register(
    "dense",
    reads=[*DISTILS, "generator"],
    makes_images=True,
    paper="Zhang et al., NeurIPS 2022",
)
def dense(task: Task) -> MethodResult:
    """Train generators for the ensemble and against the student, distil on what they make.

    Raises
    ------
    TrainingError
        If generator or distillation leaves the finite numbers.
    """
    return generate_and_distil(task, objective(task.settings.generator.disagreement))


def objective(weight: float) -> Objective:
    """Return DENSE's loss of the generator, with ``weight`` on the disagreement."""

    def loss(logits: Tensor, targets: Tensor, student_logits: Tensor | None) -> Tensor:
        known = cross_entropy(logits, targets)
        if student_logits is None or weight == 0:
            return known
        return known - weight * disagreement(logits, student_logits)

    return loss


def disagreement(logits: Tensor, student_logits: Tensor) -> Tensor:
    """``KL(ensemble || student)`` where the two decide differently, else 0: ``[B, C] -> [B]``.

    Where they agree the generator gains nothing by moving them apart: such a sample would
    leave the boundary that student and ensemble share.
    """
    differ = logits.argmax(-1) != student_logits.argmax(-1)
    return differ * soft_label_loss(student_logits, logits, temperature=1.0)
