"""Any one-shot method as a Flower strategy: one line in place of ``FedAvg()``."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import Result
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fedmitr_app.errors import ConfigError
from fedmitr_app.evaluation import FederatedScore
from fedmitr_app.methods import (
    MethodResult,
    MethodSettings,
    Task,
    drop_unusable,
    find_method,
    run_with_control,
    settings_for,
)
from fedmitr_app.models import (
    InputSpec,
    PatchViT,
    architecture_of,
    require_compiler,
    wrap_model,
)
from fedmitr_app.strategies.records import to_array_record
from fedmitr_app.strategies.upload_round import UploadRound
from fedmitr_app.uploads import RoundOutcome, Upload
from fedmitr_app.utils.device import device_lines, resolve_device

_log = logging.getLogger(__name__)

CONTROL = "control"
"""The control's part of the run folder; of no use once the run is over."""


@dataclass
class OneShotResult(Result):
    """Flower's result of a run, and all that the server knows of the round."""

    fused: MethodResult | None = None
    """The global model and how it came about."""
    control: MethodResult | None = None
    """The same of the student on images not inverted, if asked for."""
    task: Task | None = None
    """The uploads as models, and the teacher that they are."""
    outcome: RoundOutcome = field(default_factory=RoundOutcome)
    """What became of the replies."""
    scores: Mapping[str, FederatedScore] = field(default_factory=dict)
    """What nodes measured of the global model, by the metric's name."""
    left_out: frozenset[str] = frozenset()
    """Keys of those whose uploads were accepted, and not used."""


class OneShotStrategy(UploadRound):
    """Collect one upload per client and fuse them by a method that is known by name.

    Parameters
    ----------
    model : PatchViT | VisionTransformer
        The clients' architecture, a plain timm ViT or DeiT. Its weights are θ₀.
    method : str
        As ``server.method``, see :mod:`fedmitr_app.methods.registry`: any that is registered.
        ``fedcgs`` and ``afl`` need clients that send class moments, as this package's do. Of
        ``ensemble`` the result holds all models side by side, named ``<client key>/<parameter>``
        (:func:`split_ensemble`).
    settings : MethodSettings | None
        The same uploads and settings give the same model on a CPU; None: those that suit θ₀, for
        a pre-trained model or for one from scratch (:func:`settings_for`).
    input_spec : InputSpec | None
        What the clients feed their model; None reads it off the model
        (:func:`~fedmitr_app.models.spec_of`).
    device : str | torch.device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, and :meth:`summary` tells what that came to;
        or a device that the caller chose, and told about, itself.
    with_control : bool
        Also distil a student on ``inversion.initial_images``, neither chosen nor inverted, beside
        the global model, to see what the method's own images earn.
    **one_shot
        As in :class:`UploadRound`.

    Attributes
    ----------
    task : Task | None
        The uploads as models, and the teacher that they are, once they came.
    fused : MethodResult | None
        The global model and how it came about, once there is one.
    control : MethodResult | None
        The same of the student on those, if asked for.
    left_out : frozenset[str]
        Keys of the clients whose uploads were accepted, and of no use or distrusted; of a method
        that only averages, also those that no average takes.

    Raises
    ------
    ModelError
        If ``model`` is of no use, see :func:`~fedmitr_app.models.wrap_model`.
    ConfigError
        If there is no such method, ``device`` isn't there, or the model is to be compiled where
        that can't be; from ``start`` also if the initial arrays aren't the model's weights.
    AggregationError
        From ``start``, if too few of the uploads can be used or trusted.
    """

    def __init__(
        self,
        model: PatchViT | VisionTransformer,
        method: str = "fedmitr",
        settings: MethodSettings | None = None,
        *,
        input_spec: InputSpec | None = None,
        device: str | torch.device = "auto",
        with_control: bool = False,
        **one_shot: Any,
    ) -> None:
        self.method = find_method(method, "method")
        self.model = wrap_model(model, input_spec)
        super().__init__(
            architecture=architecture_of(self.model),
            input_spec=self.model.spec,
            num_classes=self.model.num_classes,
            **one_shot,
        )
        if settings is not None:
            self.settings, self._preset = settings, "given"
        else:
            preset, self.settings = settings_for(self.model)
            self._preset = f"{preset!r}, which suit the model"
        self._device_lines: list[str] = []
        if isinstance(device, str):
            device = resolve_device(device, "server.device")
            self._device_lines = device_lines("server", device, torch.get_num_threads())
        self.device = device
        if self.model.compiled:
            require_compiler(device)
        self.with_control = with_control
        self.task: Task | None = None
        self.fused: MethodResult | None = None
        self.control: MethodResult | None = None

    def summary_lines(self) -> list[str]:
        """Add the method and its settings, and the device if the strategy chose it."""
        paper = f" ({self.method.paper})" if self.method.paper else ""
        lines = [*super().summary_lines(), f"Method: {self.method.name}{paper}"]
        spec = self.model.spec
        lines.append(f"Images: {spec.size} px, mean {spec.mean}, deviation {spec.std}")
        lines.append(f"Settings: {self._preset}")
        for part in (getattr(self.settings, name) for name in self.method.reads):
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

    def start(self, grid: Grid, *arguments: Any, **keywords: Any) -> OneShotResult:
        """Run the round; parameters as of ``UploadRound.start``, result with more in it."""
        result = super().start(grid, *arguments, **keywords)
        found = {each.name: getattr(result, each.name) for each in fields(Result)}
        return OneShotResult(
            **found,
            fused=self.fused,
            control=self.control,
            task=self.task,
            outcome=self.outcome,
            scores=self.scores,
            left_out=self.left_out,
        )

    def fuse(self, uploads: Sequence[Upload]) -> dict[str, Tensor]:
        """Return the global model's state dict, or all models' side by side if there is none."""
        folder = self.round.path
        task = Task.load(self.model, uploads, self.settings, folder, self.device)
        # The whole task, to compare with; the method sees what is left of it.
        self.task = replace(task, record=self.metrics_log.add)
        task, reasons, self.left_out = drop_unusable(self.method, self.task)
        self._require_enough(len(task.clients), reasons)
        if self.with_control:
            self.fused, self.control = run_with_control(self.method, task, folder / CONTROL)
        else:
            self.fused = self.method(task)
        if self.fused.model is None:
            return join_ensemble(task.uploads)
        return {name: value.cpu() for name, value in self.fused.model.vit.state_dict().items()}

    def pack(self, fused: Mapping[str, Tensor]) -> ArrayRecord:
        """Return the fused state dict as arrays; an ensemble's have names of their own."""
        if self.fused is not None and self.fused.model is None:
            return to_array_record(fused)
        return super().pack(fused)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send every node the fused model if that is wanted, and there is a single one."""
        if self.fused is not None and self.fused.model is None:
            if self.federated_evaluation or self.send_model:
                _log.warning("An ensemble is no single model: it is neither sent nor evaluated.")
            return []
        return super().configure_evaluate(server_round, arrays, config, grid)

    def _require_enough(self, kept: int, reasons: Mapping[str, str]) -> None:
        if kept < self.min_clients:
            told = "; ".join(f"{key}: {reason}" for key, reason in sorted(reasons.items()))
            raise AggregationError(
                f"Only {kept} trusted upload(s) where at least {self.min_clients} "
                f"(server.min-clients) are needed ({told})."
            )


def join_ensemble(uploads: Iterable[Upload]) -> dict[str, Tensor]:
    """Return every upload's arrays under its client key: ``<client key>/<parameter>``."""
    return {
        f"{upload.client}/{name}": value
        for upload in uploads
        for name, value in upload.load_state().items()
    }


def split_ensemble(arrays: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return client key to state dict, from the names that :func:`join_ensemble` gives.

    Parameter names hold no slash, client keys may: the last slash separates them.
    """
    models: dict[str, dict[str, Tensor]] = {}
    for name, value in arrays.items():
        client, _, parameter = name.rpartition("/")
        models.setdefault(client, {})[parameter] = value
    return models


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
