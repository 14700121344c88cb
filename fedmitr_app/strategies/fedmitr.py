"""FedMITR as a Flower strategy (arXiv 2605.10748)."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fedmitr_app.config import DistillationConfig, InversionConfig, TeacherConfig
from fedmitr_app.errors import ModelError
from fedmitr_app.methods import Fused, MethodSettings, Task, fedmitr, without_inversion
from fedmitr_app.models import InputSpec, PatchViT, architecture_of
from fedmitr_app.reporting.environment import device_lines, resolve_device
from fedmitr_app.side_by_side import side_by_side
from fedmitr_app.strategies.one_shot import OneShotStrategy
from fedmitr_app.uploads import Upload


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
    task : Task | None
        The uploads as models, and the teacher that they are, once they came.
    fused : Fused | None
        The global model and how it came about, once there is one.
    control : Fused | None
        The same of the student on procedural images, if asked for.

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
        self.settings = MethodSettings(
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
        self.task: Task | None = None
        self.fused: Fused | None = None
        self.control: Fused | None = None

    def summary_lines(self) -> list[str]:
        """Add the method's settings, and the device if the strategy chose it."""
        lines = super().summary_lines()
        for part in (self.settings.teacher, self.settings.inversion, self.settings.distillation):
            words = ", ".join(f"{k}={v}" for k, v in asdict(part).items())
            lines.append(f"{type(part).__name__}: {words}")
        return lines + self._device_lines

    def fuse(self, uploads: Sequence[Upload]) -> dict[str, Tensor]:
        """Return the distilled student's state dict."""
        log = self.metrics_log
        with tempfile.TemporaryDirectory(prefix="fedmitr-") as temporary:
            folder = self.run_dir or Path(temporary)
            task = Task.load(self.model, uploads, self.settings, folder, self.device)
            self.task = task = replace(task, record=log.add)
            methods = [lambda: fedmitr(task)]
            if self.with_control:
                control = task.alter(
                    without_inversion,
                    folder=Path(temporary) / "control",
                    label="control: ",
                    record=lambda stage, **values: log.add("control", **values),
                )
                methods.append(lambda: fedmitr(control))
            self.fused, *others = side_by_side(methods, self.device)
        self.control = others[0] if others else None
        return {name: value.cpu() for name, value in self.fused.model.vit.state_dict().items()}


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
