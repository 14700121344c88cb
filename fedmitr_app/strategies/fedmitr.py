"""FedMITR as a Flower strategy (arXiv 2605.10748)."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fedmitr_app.config import DistillationConfig, InversionConfig, TeacherConfig
from fedmitr_app.fusion import (
    Fusion,
    FusionSettings,
    build_teacher,
    fuse_by_inversion,
    load_clients,
)
from fedmitr_app.errors import ModelError
from fedmitr_app.models import InputSpec, PatchViT, architecture_of
from fedmitr_app.reporting.environment import device_lines, resolve_device
from fedmitr_app.reporting.metrics_log import Record
from fedmitr_app.side_by_side import side_by_side
from fedmitr_app.strategies.one_shot import OneShotStrategy
from fedmitr_app.teacher import ClientModel, Teacher
from fedmitr_app.uploads import Upload, average


class FedMITR(OneShotStrategy):
    """Invert the uploaded models into images and distil them into one.

    In an existing project it stands where ``FedAvg()`` stood: ``FedMITR(model)``.

    Parameters
    ----------
    model : PatchViT | VisionTransformer
        The clients' architecture, a plain timm ViT or DeiT. Its weights are θ₀.
    input_spec : InputSpec | None
        What the clients feed their model; None reads size and channels off the model
        and takes pixels in [-1, 1] (mean and std 0.5).
    teacher, inversion, distillation : TeacherConfig, InversionConfig, DistillationConfig
        How the uploads are combined, inverted and distilled.
    seed : int
        Run seed: the same uploads and seed give the same model on a CPU.
    device : str | torch.device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, and :meth:`summary` tells what that came to;
        or a device that the caller chose, and told about, itself.
    with_control : bool
        Also distil a student on procedural images neither chosen nor inverted, beside the
        global model, to see what the pool earns.
    **one_shot
        As in :class:`OneShotStrategy`.

    Attributes
    ----------
    fusion : Fusion | None
        How the global model came about, once there is one.
    control : Fusion | None
        The same of the student on procedural images, if asked for.
    clients : list[ClientModel]
        The uploads as models, in the order of their keys.
    teacher_model : Teacher | None
        The ensemble that they are, which the global model was distilled from.

    Raises
    ------
    ModelError
        If ``model`` is no plain ViT or DeiT, or takes other images than ``input_spec`` says.
    ConfigError
        If ``device`` isn't there.
    """

    def __init__(
        self,
        model: PatchViT | VisionTransformer,
        *,
        input_spec: InputSpec | None = None,
        teacher: TeacherConfig | None = None,
        inversion: InversionConfig | None = None,
        distillation: DistillationConfig | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
        with_control: bool = False,
        **one_shot: Any,
    ) -> None:
        self.model = _wrap(model, input_spec)
        super().__init__(
            architecture=architecture_of(self.model),
            input_spec=self.model.spec,
            num_classes=self.model.num_classes,
            **one_shot,
        )
        self.settings = FusionSettings(
            teacher or TeacherConfig(),
            inversion or InversionConfig(),
            distillation or DistillationConfig(),
            seed,
        )
        self._device_lines: list[str] = []
        if isinstance(device, str):
            device = resolve_device(device, "server.device")
            self._device_lines = device_lines("server", device, torch.get_num_threads())
        self.device = device
        self.with_control = with_control
        self.fusion: Fusion | None = None
        self.control: Fusion | None = None
        self.clients: list[ClientModel] = []
        self.teacher_model: Teacher | None = None

    def summary_lines(self) -> list[str]:
        """Add the method's settings, and the device if the strategy chose it."""
        lines = super().summary_lines()
        for part in (self.settings.teacher, self.settings.inversion, self.settings.distillation):
            words = ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(part).items())
            lines.append(f"{type(part).__name__}: {words}")
        return lines + self._device_lines

    def fuse(self, uploads: Sequence[Upload]) -> dict[str, Tensor]:
        """Return the distilled student's state dict."""
        self.clients = load_clients(self.model, uploads, self.device)
        self.teacher_model = build_teacher(self.clients, self.settings.teacher, self.settings.seed)
        averaged, log = average(uploads), self.metrics_log

        def distil(settings: FusionSettings, folder: Path, label: str, record: Record) -> Fusion:
            return fuse_by_inversion(
                self.model,
                self.clients,
                averaged,
                self.teacher_model,
                settings,
                folder,
                label=label,
                record=record,
            )

        with tempfile.TemporaryDirectory(prefix="fedmitr-pools-") as temporary:
            kept = Path(temporary) if self.run_dir is None else self.run_dir
            tasks = [lambda: distil(self.settings, kept / "pool", "", log.add)]
            if self.with_control:
                plain = self.settings.without_inversion()
                tasks.append(
                    lambda: distil(
                        plain,
                        Path(temporary) / "control",
                        "control: ",
                        lambda stage, **values: log.add("control", **values),
                    )
                )
            self.fusion, *rest = side_by_side(tasks, self.device)
        self.control = rest[0] if rest else None
        return {name: value.cpu() for name, value in self.fusion.student.vit.state_dict().items()}


def _wrap(vit: PatchViT | VisionTransformer, input_spec: InputSpec | None) -> PatchViT:
    if isinstance(vit, PatchViT):
        if input_spec not in (None, vit.spec):
            raise ModelError(
                f"input_spec = {input_spec} is not what the PatchViT takes ({vit.spec}): leave it "
                "out, or pass the timm model."
            )
        return vit
    if not isinstance(vit, VisionTransformer):
        raise ModelError(
            f"FedMITR inverts Vision Transformers, not a {type(vit).__name__}: pass a plain timm "
            "ViT or DeiT."
        )
    if input_spec is None:
        size, channels = vit.patch_embed.img_size[0], vit.patch_embed.proj.in_channels
        input_spec = InputSpec(size, channels, (0.5,), (0.5,))
    return PatchViT(vit, input_spec)
