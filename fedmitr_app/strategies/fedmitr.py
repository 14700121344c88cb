"""FedMITR as a Flower strategy (arXiv 2605.10748)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from fedmitr_app.config import DistillationConfig, InversionConfig, MergeConfig, TeacherConfig
from fedmitr_app.methods import settings_for
from fedmitr_app.models import InputSpec, PatchViT
from fedmitr_app.strategies.one_shot import OneShotStrategy


class FedMITR(OneShotStrategy):
    """Invert the uploaded models into images and distil them into one.

    In an existing project it stands where ``FedAvg()`` stood: ``FedMITR(model)``.

    Parameters
    ----------
    model : PatchViT | VisionTransformer
        The clients' architecture, a plain timm ViT or DeiT. Its weights are θ₀.
    preset : str
        ``auto`` takes the settings that suit θ₀, for a pre-trained model or for one from scratch;
        or the name of a preset.
    changes : Mapping[str, Any] | None
        Settings by their run-config keys, such as ``{"distillation.steps": 500}``: they win over
        the preset.
    teacher, merge, inversion, distillation : TeacherConfig, MergeConfig, InversionConfig, ...
        A whole section in place of the preset's.
    seed : int
        Run seed: the same uploads, settings and seed give the same model on a CPU.
    input_spec : InputSpec | None
        What the clients feed their model; None reads it off the model.
    **others
        ``device`` and more, as in :class:`OneShotStrategy`.
    """

    def __init__(
        self,
        model: PatchViT | VisionTransformer,
        *,
        preset: str = "auto",
        changes: Mapping[str, Any] | None = None,
        teacher: TeacherConfig | None = None,
        merge: MergeConfig | None = None,
        inversion: InversionConfig | None = None,
        distillation: DistillationConfig | None = None,
        seed: int = 0,
        input_spec: InputSpec | None = None,
        **others: Any,
    ) -> None:
        super().__init__(model, "fedmitr", input_spec=input_spec, **others)
        name, settings = settings_for(self.model, preset, seed, changes)
        sections: dict[str, Any] = {
            "teacher": teacher,
            "merge": merge,
            "inversion": inversion,
            "distillation": distillation,
        }
        given = {key: value for key, value in sections.items() if value is not None}
        self.settings = replace(settings, **given)
        self._preset = f"{name!r}" + (f" but for {', '.join(given)}" if given else "")
