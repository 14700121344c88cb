"""Dense inversion and plain distillation.

"Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion" (Yin et al., CVPR 2020),
as far as it applies to a ViT: its feature-statistics prior reads BatchNorm's running moments,
which a ViT has not.
"""

from dataclasses import replace

from fedmitr_app.methods.fedmitr import fedmitr
from fedmitr_app.methods.registry import register
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.settings import MethodSettings
from fedmitr_app.methods.task import Task


def settings(ours: MethodSettings) -> MethodSettings:
    """Never stop a patch; give every token's loss up; all else equal."""
    inversion = replace(ours.inversion, schedule="dense")
    return replace(
        ours, inversion=inversion, distillation=replace(ours.distillation, relabel="none")
    )


@register("dense-inversion", makes_images=True, paper="after DeepInversion, Yin et al., CVPR 2020")
def dense_inversion(task: Task) -> MethodResult:
    """Invert every patch to the end, distil the class token's answer only."""
    return fedmitr(task.alter(settings))
