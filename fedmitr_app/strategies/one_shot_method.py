"""Any one-shot method of this package as a Flower strategy."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.exception import AggregationError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fedmitr_app.config.schema import METHODS as SERVER_METHODS
from fedmitr_app.errors import ConfigError
from fedmitr_app.methods import (
    METHODS,
    Fused,
    MethodSettings,
    Task,
    beside,
    without_inversion,
)
from fedmitr_app.models import (
    InputSpec,
    PatchViT,
    architecture_of,
    require_compiler,
    take_model,
)
from fedmitr_app.reporting.environment import device_lines, resolve_device
from fedmitr_app.strategies.one_shot import OneShotStrategy
from fedmitr_app.uploads import Upload

CONTROL = "control"
"""The control's part of the run folder; of no use once the run is over."""
AVERAGES = ("fedavg", "fedavg-uniform", "merged")
"""Methods to which an upload that no average takes is of no use at all."""


class OneShotMethod(OneShotStrategy):
    """Fuse the uploads by a method that is known by name.

    Parameters
    ----------
    model : PatchViT | VisionTransformer
        The clients' architecture, a plain timm ViT or DeiT. Its weights are θ₀.
    method : str
        As ``server.method``, but one that makes a single model. ``fedcgs`` and ``afl`` need
        clients that send class moments, as this package's do.
    settings : MethodSettings | None
        The same uploads and settings give the same model on a CPU; None: the defaults.
    input_spec : InputSpec | None
        What the clients feed their model; None reads size and channels off the model
        and takes pixels in [-1, 1] (mean and std 0.5).
    device : str | torch.device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, and :meth:`summary` tells what that came to;
        or a device that the caller chose, and told about, itself.
    with_control : bool
        Also distil a student on ``inversion.initial_images``, neither chosen nor inverted, beside
        the global model, to see what the method's own images earn.
    **one_shot
        As in :class:`OneShotStrategy`.

    Attributes
    ----------
    task : Task | None
        The uploads as models, and the teacher that they are, once they came.
    fused : Fused | None
        The global model and how it came about, once there is one.
    control : Fused | None
        The same of the student on those, if asked for.
    left_out : frozenset[str]
        Keys of the clients whose uploads were accepted, and of no use or distrusted; of a method
        that only averages, also those that no average takes.

    Raises
    ------
    ModelError
        If ``model`` is of no use, see :func:`~fedmitr_app.models.take_model`.
    ConfigError
        If there is no such method, ``device`` isn't there, or the model is to be compiled, or
        steps are to be recorded, where that can't be.

    :meth:`start` raises ``ConfigError`` also if the initial arrays aren't the model's weights,
    ``AggregationError`` also if too few of the uploads can be trusted.
    """

    def __init__(
        self,
        model: PatchViT | VisionTransformer,
        method: str,
        settings: MethodSettings | None = None,
        *,
        input_spec: InputSpec | None = None,
        device: str | torch.device = "auto",
        with_control: bool = False,
        **one_shot: Any,
    ) -> None:
        single = [name for name in SERVER_METHODS if name != "ensemble"]
        if method not in single:
            raise ConfigError.bad_value("method", method, f"one of {', '.join(map(repr, single))}")
        self.method = method
        self.model = take_model(model, input_spec)
        super().__init__(
            architecture=architecture_of(self.model),
            input_spec=self.model.spec,
            num_classes=self.model.num_classes,
            **one_shot,
        )
        self.settings = settings or MethodSettings()
        self._device_lines: list[str] = []
        if isinstance(device, str):
            device = resolve_device(device, "server.device")
            self._device_lines = device_lines("server", device, torch.get_num_threads())
        self.device = device
        if self.model.compiled:
            require_compiler(device)
        self.with_control = with_control
        self.task: Task | None = None
        self.fused: Fused | None = None
        self.control: Fused | None = None

    def summary_lines(self) -> list[str]:
        """Add the method and its settings, and the device if the strategy chose it."""
        lines = [*super().summary_lines(), f"Method: {self.method}"]
        settings = self.settings
        parts = [settings.merge, settings.teacher, settings.inversion, settings.distillation]
        if self.method in ("dense", "co-boosting"):
            parts.append(settings.generator)
        for part in parts:
            words = ", ".join(f"{k}={v}" for k, v in asdict(part).items())
            lines.append(f"{type(part).__name__}: {words}")
        return lines + self._device_lines

    def check_initial(self, arrays: ArrayRecord) -> None:
        """Refuse arrays that aren't the model's own weights, θ₀, before anybody trains from them.

        Raises
        ------
        ConfigError
            With the first difference.
        """
        given = arrays.to_torch_state_dict()
        if difference := _difference(given, self.model.vit.state_dict()):
            raise ConfigError(
                f"initial_arrays are not the weights of the model that {type(self).__name__} was "
                f"made with ({difference[:200]}): pass ArrayRecord(model.state_dict()) of it."
            )

    def fuse(self, uploads: Sequence[Upload]) -> dict[str, Tensor]:
        """Return the global model's state dict."""
        log, folder = self.metrics_log, self.round.path
        task = Task.load(self.model, uploads, self.settings, folder, self.device)
        # The whole task, to compare with; the method sees what the defence leaves.
        self.task = replace(task, record=log.add)
        task = self.task.defended()
        self._require_enough(task)
        if not self.with_control:
            self.fused = METHODS[self.method](task)
        else:
            control = task.alter(
                without_inversion,
                folder=folder / CONTROL,
                label="control: ",
                record=lambda stage, **values: log.add("control", **values),
            )
            with beside("fedmitr", control) as result:
                self.fused = METHODS[self.method](task)
                self.control = result()
        return {name: value.cpu() for name, value in self.fused.model.vit.state_dict().items()}

    def _require_enough(self, defended: Task) -> None:
        kept = {client.key for client in defended.clients}
        judged = zip(self.task.clients, self.task.trust, self.task.weighed, strict=True)
        reasons = {
            each.key: trust.reason or weighed.reasons[0]
            for each, trust, weighed in judged
            if each.key not in kept
        }
        unused = {
            each.key
            for each, weighed in zip(self.task.clients, self.task.weighed, strict=True)
            if weighed.unfit and self.method in AVERAGES
        }
        self.left_out = unused.union(reasons)
        if len(kept) < self.min_clients:
            told = "; ".join(f"{key}: {reason}" for key, reason in sorted(reasons.items()))
            raise AggregationError(
                f"Only {len(kept)} trusted upload(s) where at least {self.min_clients} "
                f"(server.min-clients) are needed ({told})."
            )


def _difference(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Say what the first difference between two state dicts is; nothing if they are the same."""
    for name in (*own, *given):
        if name not in given:
            return f"they lack {name!r}"
        if name not in own:
            return f"they hold {name!r}, which it has not"
        shapes = tuple(given[name].shape), tuple(own[name].shape)
        if shapes[0] != shapes[1]:
            return f"{name} has shape {shapes[0]}, not {shapes[1]}"
        if given[name].dtype != own[name].dtype:
            return f"{name} is {given[name].dtype}, not {own[name].dtype}"
        if not torch.equal(given[name], own[name].cpu()):
            return f"{name} has other values"
    return ""
