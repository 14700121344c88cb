"""FedMITR as a Flower strategy (arXiv 2605.10748)."""

from typing import Any

from timm.models.vision_transformer import VisionTransformer

from fedmitr_app.config import DistillationConfig, InversionConfig, MergeConfig, TeacherConfig
from fedmitr_app.methods import MethodSettings
from fedmitr_app.models import PatchViT
from fedmitr_app.strategies.one_shot import OneShotStrategy


class FedMITR(OneShotStrategy):
    """Invert the uploaded models into images and distil them into one.

    In an existing project it stands where ``FedAvg()`` stood: ``FedMITR(model)``.

    Parameters
    ----------
    model : PatchViT | VisionTransformer
        The clients' architecture, a plain timm ViT or DeiT. Its weights are θ₀.
    teacher, inversion, distillation : TeacherConfig, InversionConfig, DistillationConfig
        How the uploads are combined, inverted and distilled.
    merge : MergeConfig
        How their weights are merged into what the student starts from.
    seed : int
        Run seed: the same uploads and seed give the same model on a CPU.
    **others
        ``input_spec``, ``device`` and more, as in :class:`OneShotStrategy`.
    """

    def __init__(
        self,
        model: PatchViT | VisionTransformer,
        *,
        teacher: TeacherConfig | None = None,
        inversion: InversionConfig | None = None,
        distillation: DistillationConfig | None = None,
        merge: MergeConfig | None = None,
        seed: int = 0,
        **others: Any,
    ) -> None:
        settings = MethodSettings(
            teacher or TeacherConfig(),
            inversion or InversionConfig(),
            distillation or DistillationConfig(),
            seed=seed,
            merge=merge or MergeConfig(),
        )
        super().__init__(model, "fedmitr", settings, **others)
