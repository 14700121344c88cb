"""A round that collects individual models, as a Flower strategy: each client uploads once."""

import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from fedmitr_app.errors import ConfigError
from fedmitr_app.evaluation import FederatedScore
from fedmitr_app.models.spec import InputSpec
from fedmitr_app.strategies.collecting import Collector, require_enough
from fedmitr_app.strategies.evaluating import collect_scores
from fedmitr_app.strategies.logs import join_flower_log
from fedmitr_app.strategies.messages import messages, needs_models, uploads_here
from fedmitr_app.strategies.nodes import await_nodes
from fedmitr_app.strategies.records import (
    SCORE_KEY,
    RecordKeys,
    pack_state,
    reference_of_record,
)
from fedmitr_app.strategies.streaming_grid import StreamingGrid
from fedmitr_app.uploads import (
    ArraySpec,
    Expected,
    RoundFolder,
    RoundOutcome,
    Spool,
    Upload,
    doubtful_counts,
    require_compatible,
)
from fedmitr_app.utils.files import local_path
from fedmitr_app.utils.metrics_log import MetricsLog

_log = logging.getLogger(__name__)


class UploadRound(Strategy):
    """Collect one upload per client, validate and spool each by itself.

    What becomes of them a subclass says: :class:`OneShotStrategy`. Ordinary Flower clients,
    which reply ``arrays`` and ``metrics`` with ``num-examples``, need no change.

    Parameters
    ----------
    min_clients : int
        Fewest valid uploads that may be fused, and nodes that must connect.
    wait_for_nodes, patience, absence : float
        Seconds to wait for nodes; for the other uploads once ``min_clients`` are there (0: as
        long as the round may take); for a node that was asked and is out of reach.
    expected_nodes : int | None
        How many nodes there should be; None waits until their number is steady.
    run_dir : Path | None
        Uploads go to its ``uploads/``, reasons to ``rejected/``, what each stage measures
        to ``metrics.jsonl``; None uses a temporary folder that is gone after ``start``,
        unless that fails: then it stays, and the error says where.
    architecture, input_spec : Mapping[str, Any] | None, InputSpec | None
        Refuse uploads that declare another one (see ``models.architecture_of``).
    num_classes : int | None
        To check label counts by.
    resume, uploads_from, exclude_clients : bool, Path | str | None, Sequence[str]
        Go on where a process was stopped; fuse another run's uploads; leave clients out: see
        :class:`~fedmitr_app.uploads.RoundFolder`.
    federated_evaluation, send_model : bool
        Have all nodes evaluate the fused model; send it to them also without, so that those of
        this package's clients that want to can keep it.
    evaluation_metrics : Sequence[str] | None
        What nodes' evaluation may be called, each a share from 0 to 1; None takes any numbers.
    arrayrecord_key, configrecord_key, weighted_by_key : str
        As in Flower's FedAvg.
    settle_seconds, poll_seconds : float
        How long a steady number of nodes counts as all; pause between looks.

    Attributes
    ----------
    outcome : RoundOutcome
        What became of the replies, also after an error.
    scores : Mapping[str, FederatedScore]
        What nodes measured of the fused model, by the metric's name.
    left_out : frozenset[str]
        Keys of those whose uploads were accepted, and not used.
    """

    def __init__(
        self,
        *,
        min_clients: int = 1,
        wait_for_nodes: float = 120.0,
        patience: float = 0.0,
        absence: float = 300.0,
        expected_nodes: int | None = None,
        run_dir: Path | str | None = None,
        resume: bool = False,
        uploads_from: Path | str | None = None,
        exclude_clients: Sequence[str] = (),
        architecture: Mapping[str, Any] | None = None,
        input_spec: InputSpec | None = None,
        num_classes: int | None = None,
        federated_evaluation: bool = False,
        send_model: bool = False,
        evaluation_metrics: Sequence[str] | None = None,
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        weighted_by_key: str = "num-examples",
        settle_seconds: float = 2.0,
        poll_seconds: float = 0.5,
    ) -> None:
        if isinstance(min_clients, bool) or not isinstance(min_clients, int) or min_clients < 1:
            raise ConfigError.bad_value("min_clients", min_clients, "a whole number of at least 1")
        self.min_clients = min_clients
        self.wait_for_nodes, self.patience, self.absence = wait_for_nodes, patience, absence
        self.expected_nodes = expected_nodes
        self.run_dir = None if run_dir is None else local_path("run_dir", run_dir, ConfigError)
        earlier = local_path("uploads_from", uploads_from, ConfigError) if uploads_from else None
        self.round = RoundFolder(self.run_dir, resume, earlier, exclude_clients)
        self.expected = Expected(architecture, input_spec, num_classes)
        self.federated_evaluation, self.send_model = federated_evaluation, send_model
        self.evaluation_metrics = evaluation_metrics
        self.keys = RecordKeys(arrayrecord_key, configrecord_key, weighted_by_key)
        self.settle_seconds = settle_seconds
        self.poll_seconds = poll_seconds
        self.metrics_log = MetricsLog(self.run_dir)
        self.outcome = RoundOutcome()
        self.scores: dict[str, FederatedScore] = {}
        self.left_out: frozenset[str] = frozenset()
        self.reference: dict[str, ArraySpec] = {}
        self._spool: Spool | None = None
        self._told: Mapping[int, list[str]] = {}
        self._started, self._timeout = False, 0.0

    @abstractmethod
    def fuse(self, uploads: Sequence[Upload]) -> Mapping[str, Tensor]:
        """Return the global model's state dict.

        Parameters
        ----------
        uploads : Sequence[Upload]
            At least ``min_clients``, each valid by itself, sorted by client key.

        Returns
        -------
        Mapping[str, Tensor]
            With the names and shapes of the initial arrays.
        """

    def summary(self) -> None:
        """Log the settings."""
        lines = self.summary_lines()
        for mark, line in zip("├" * (len(lines) - 1) + "└", lines, strict=True):
            _log.info("\t%s──> %s", mark, line)

    def summary_lines(self) -> list[str]:
        """Return what :meth:`summary` logs."""
        return [
            "One round: collect, validate, spool, fuse",
            f"At least {self.min_clients} client(s)",
            f"Waits up to {self.wait_for_nodes:g} s for nodes",
            f"Federated evaluation: {'on' if self.federated_evaluation else 'off'}",
            f"Uploads go to {self.run_dir or 'a temporary folder'}",
        ]

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 1,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the round; parameters and result as in Flower's ``Strategy.start``.

        Raises
        ------
        ConfigError
            If ``num_rounds`` is not 1.
        AggregationError
            If too few nodes connect, or too few of their uploads can be used.
        """
        join_flower_log()
        if num_rounds != 1:
            raise ConfigError.bad_value(
                "num_rounds",
                num_rounds,
                f"1, because {type(self).__name__} is a one-shot method: every client uploads "
                "once, and a second round would not train on the first one's result",
            )
        self.check_initial(initial_arrays)
        self._started, self._timeout = True, timeout
        streaming = StreamingGrid(grid, self.poll_seconds, self.absence)
        how = num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        try:
            with self.round:
                return super().start(streaming, initial_arrays, *how)
        finally:
            self._started = False
            self._spool = None

    def check_initial(self, arrays: ArrayRecord) -> None:
        """Refuse arrays to start from that the method can't use: a subclass may know its model."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every connected node to train from the initial arrays."""
        if not self._started:
            raise needs_models(self, "a strategy that wraps it, as for differential privacy, does")
        self.reference = reference_of_record(arrays)
        if (earlier := self.round.earlier()) is not None:
            self.outcome = earlier
            require_compatible(earlier.accepted, self.reference, self.expected)
            _log.info("The uploads are there already: nobody is asked to train.")
            return []
        # Opened first: a folder that can't be used must show before anyone trains.
        self._spool = self.round.spool(self.reference, self.expected)
        if here := self._spool.here:
            _log.info("Uploads that are there already: %s.", ", ".join(sorted(here)))
        nodes = self.await_nodes(grid, at_least=max(0, self.min_clients - self._spool.distinct))
        _log.info("asking %d client(s) to train once and upload their weights", len(nodes))
        self._told = uploads_here(grid, nodes, here)
        how = self.keys.config, nodes, MessageType.TRAIN, self._timeout, self._told
        return messages(self._content(server_round, arrays, config), *how)

    def await_nodes(self, grid: Grid, at_least: int | None = None) -> list[int]:
        """Wait for the clients' nodes: at least ``min_clients``, or as many as are said."""
        return await_nodes(
            grid,
            at_least=self.min_clients if at_least is None else at_least,
            expected=self.expected_nodes,
            seconds=self.wait_for_nodes,
            settle_seconds=self.settle_seconds,
            poll_seconds=self.poll_seconds,
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Spool the replies as they arrive, then fuse what was accepted."""
        if self._spool is not None:
            how = self.keys, self.reference, self.expected, self.min_clients, self.patience
            outcome = Collector(self._spool, *how, self._told).collect(replies)
            self.outcome = self.round.without_excluded(outcome)
        _log.info("%s", self.outcome.sentence())
        require_enough(self.outcome, self.min_clients)
        if self._spool is not None:  # only now: a round that lacks uploads can be gone on with
            self.round.finish(outcome)
            self._spool = None
        uploads = self.outcome.accepted
        if doubtful := ", ".join(doubtful_counts(uploads)):
            _log.warning("All count alike: the number of examples of %s can't be right.", doubtful)
        started = time.monotonic()
        with self.metrics_log as log:
            for upload in uploads:
                # Their names come from the client: kept apart, they can't stand for others.
                log.add("training", client=upload.client, metrics=upload.metrics)
            log.flush()
            fused = self.pack(self.fuse(uploads))
        self.outcome = replace(self.outcome, fuse_seconds=time.monotonic() - started)
        return fused, MetricRecord({**self.outcome.metrics(), "uploads": len(uploads)})

    def pack(self, fused: Mapping[str, Tensor]) -> ArrayRecord:
        """Return the fused state dict as arrays, in the order of the initial ones."""
        return pack_state(fused, self.reference, type(self).__name__)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send every connected node the fused model, to evaluate or to keep, if that is wanted."""
        if not (self.federated_evaluation or self.send_model):
            return []
        config[SCORE_KEY], nodes = self.federated_evaluation, sorted(grid.get_node_ids())
        how = self.keys.config, nodes, MessageType.EVALUATE, self._timeout
        return messages(self._content(server_round, arrays, config), *how)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return each metric's mean, without bad replies and those that come past patience."""
        how = self.keys, self.evaluation_metrics, self.patience
        self.scores = collect_scores(replies, *how)
        means = MetricRecord({name: score.value for name, score in self.scores.items()})
        return means or None

    def initialize_parameters(self, *_: Any, **__: Any) -> None:
        """Refuse Flower's workflows, which begin with this: secure aggregation is one."""
        raise needs_models(self, "a workflow, as for secure aggregation, does")

    def _content(self, number: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        config["server-round"] = number
        return RecordDict({self.keys.arrays: arrays, self.keys.config: config})
