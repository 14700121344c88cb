"""What a report is made of: plain numbers and tensors, with every part optional."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ClientRow:
    """One client, as the tables show it.

    Attributes
    ----------
    client : str
        Its stable key, as it says; what its node is called if it said nothing.
    node : int
        Flower's id of the node that the row is about, which nobody can make up; 0 if unknown.
    num_examples : int | None
        Size of its shard, as it says.
    train_loss, train_accuracy : float | None
        At the end of its own training, as it says.
    accuracy : float | None
        Of its model on the held-out test set, in [0, 1].
    size, information, agreement : float | None
        What its answers to generic images say of it, see ``teacher.screening``: how loud they
        are and how much they tell, over the median client's; how they go with the others'.
    status : str
        "ok"; anything else ("suspicious", "left out", "rejected", "excluded", "no data",
        "no reply") is shown as a warning.
    reason : str
        Why, when the status is not "ok".
    """

    client: str
    num_examples: int | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    accuracy: float | None = None
    size: float | None = None
    information: float | None = None
    agreement: float | None = None
    status: str = "ok"
    reason: str = ""
    node: int = 0

    @property
    def taught(self) -> bool:
        """Whether its model was used: a suspicious one perhaps in no average of weights."""
        return self.status in ("ok", "suspicious")


@dataclass(frozen=True)
class PoolSample:
    """Some synthetic images, for looking at.

    Attributes
    ----------
    images : Tensor
        uint8 in [0, 255] or floating point in [0, 1], [n, C, H, W] with C = 1 or 3.
    patch_size : int
        Side of a patch in pixels.
    titles : Sequence[str]
        What each image is meant to be, such as its class name; empty for none.
    kept : Sequence[Tensor] | Tensor | None
        Row-major indices of the patches that survived: [n, k], or n tensors of
        different lengths.
    attention : Tensor | None
        The teacher's class-token attention [n, grid, grid], of any scale.
    """

    images: Tensor
    patch_size: int
    titles: Sequence[str] = ()
    kept: Sequence[Tensor] | Tensor | None = None
    attention: Tensor | None = None


@dataclass(frozen=True)
class Curves:
    """Values over the steps of a stage.

    Attributes
    ----------
    steps : Sequence[float]
        Iteration or step of each point.
    values : Mapping[str, Sequence[float]]
        Name of the curve to its points, as many as ``steps``. Inversion knows
        "loss" and "confidence" (in [0, 1], gets its own axis); distillation "loss"
        and, if wanted, its terms.
    stops : Sequence[float]
        Steps to mark (where patches were stopped).
    """

    steps: Sequence[float]
    values: Mapping[str, Sequence[float]]
    stops: Sequence[float] = ()


@dataclass(frozen=True)
class ReportData:
    """Everything the report shows. What is left out is left out of the page.

    Attributes
    ----------
    config : Mapping[str, bool | int | float | str]
        The resolved configuration under its flat run-config keys.
    defaults : Mapping[str, bool | int | float | str]
        The same keys with the app's defaults, the chosen preset's values laid over
        them: what differs is shown first, and goes into the command to reproduce.
    metrics : Mapping[str, Any]
        As in ``metrics.json``: ``accuracy`` ("student", "teacher", "fedavg",
        "control", "clients"), ``by_class``, ``data_read``, ``inversion``,
        ``distillation``, ``seconds``, ...
    environment : Mapping[str, Any]
        From ``describe_environment``.
    clients : Sequence[ClientRow]
        Every client that was asked, the rejected ones too.
    class_names : Sequence[str]
        In label order.
    label_matrix : Any
        int [clients, classes], of the clients where it is known what they hold.
    label_matrix_clients : Sequence[str]
        The client of each row of ``label_matrix``.
    pool : PoolSample | None
        Some synthetic images.
    inversion, distillation : Curves | None
        What happened on the way.
    test_images : int
        Size of the test set; 0 when unknown. Says how much noise is in an accuracy.
    asked : int
        Nodes that were asked to train; 0 when unknown.
    simulated : bool
        Whether Flower simulated them.
    generated : bool
        Whether generators made the images, and no inversion.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    clients: Sequence[ClientRow] = ()
    class_names: Sequence[str] = ()
    label_matrix: Any = None
    label_matrix_clients: Sequence[str] = ()
    pool: PoolSample | None = None
    inversion: Curves | None = None
    distillation: Curves | None = None
    test_images: int = 0
    asked: int = 0
    simulated: bool = False
    generated: bool = False

    @property
    def accuracy(self) -> Mapping[str, Any]:
        """The accuracies of ``metrics``, empty when nothing was tested."""
        return self.metrics.get("accuracy") or {}

    @property
    def by_class(self) -> Mapping[str, Any]:
        """What was right of each class, of ``metrics``; empty when nothing was tested."""
        return self.metrics.get("by_class") or {}
