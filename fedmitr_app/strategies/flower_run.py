"""What a run needs of Flower: how it was asked for, and one round on the nodes that are there."""

import logging
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.supercore.exit import add_exit_handler
from numpy.typing import NDArray

from fedmitr_app.config import Config
from fedmitr_app.evaluation import HELD_OUT, TRAINED_ON
from fedmitr_app.methods import MethodSettings, find_method
from fedmitr_app.models import PatchViT, settings_of
from fedmitr_app.partitions import label_matrix, split_names
from fedmitr_app.run_folder import RunFolder
from fedmitr_app.strategies.logs import without_summaries
from fedmitr_app.strategies.messages import given_keys, is_simulation
from fedmitr_app.strategies.nodes import await_ray
from fedmitr_app.strategies.one_shot import OneShotResult, OneShotStrategy
from fedmitr_app.strategies.records import GIVEN_KEY, SIMULATED_KEY

_log = logging.getLogger(__name__)


class FlowerRun:
    """A run as Flower knows it.

    Parameters
    ----------
    grid : Grid
        The nodes.

    Attributes
    ----------
    given : list[str]
        Keys of the settings that the user gave with ``--run-config``, sorted.
    simulated : bool
        Whether Flower simulates the nodes.
    run_id : int
        Flower's id of it.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.given = given_keys(grid)
        self.simulated = is_simulation(grid)
        self.run_id: int = getattr(grid.run, "run_id", 0)

    def on_exit(self, stop: Callable[[], None]) -> None:
        """Have something called when Flower ends its process.

        A simulation's ServerApp, which runs in a thread, hears of no signal.
        """
        add_exit_handler(stop)

    def fuse(
        self,
        config: Config,
        model: PatchViT,
        class_names: tuple[str, ...],
        folder: RunFolder,
        device: torch.device,
        deal: bool,
    ) -> tuple[OneShotResult, NDArray[np.int64] | None]:
        """Do the strategy's one round.

        Parameters
        ----------
        deal : bool
            Also deal the data to the nodes as they themselves will, for the report.

        Returns
        -------
        tuple[OneShotResult, NDArray[np.int64] | None]
            And images of each class that each client was dealt, ``[clients, classes]``.

        Raises
        ------
        FedmitrError
            If the data can't be dealt to so many, before anybody trains; if fusion fails.
        AggregationError
            If too few nodes or usable uploads come.
        """
        strategy = build_strategy(config, model, folder, device)
        labels = self._deal_labels(config, strategy) if deal else None
        if config.inversion.backend == "ray" and self.simulated:
            await_ray()
        told: dict[str, str | list[str]] = {"class-names": list(class_names)}
        told |= {GIVEN_KEY: self.given, **settings_of(config.model)}
        shared = {**told, SIMULATED_KEY: self.simulated}
        with without_summaries():
            result = strategy.start(
                self.grid,
                ArrayRecord(model.vit.state_dict()),
                num_rounds=1,
                timeout=config.server.timeout,
                train_config=ConfigRecord({**shared}),
                evaluate_config=ConfigRecord({**shared}),
            )
        return result, labels

    def _deal_labels(self, config: Config, strategy: OneShotStrategy) -> NDArray[np.int64]:
        earlier = strategy.round.earlier()
        if earlier is not None:
            clients = earlier.asked
        else:
            clients = strategy.expected_nodes = len(strategy.await_nodes(self.grid))
        return label_matrix(config.data, config.partition, clients, config.seed)


class _AppStrategy(OneShotStrategy):
    """The strategy of a run whose settings lie in its folder."""

    def summary(self) -> None:
        """Log the method, in one line."""
        paper = f" ({self.method.paper})" if self.method.paper else ""
        _log.info("method: %s%s, one round", self.method.name, paper)


def build_strategy(
    config: Config, model: PatchViT, folder: RunFolder, device: torch.device
) -> OneShotStrategy:
    """Return the strategy that ``server.method`` names."""
    server = config.server
    # What uploads must declare is read off the model itself.
    return _AppStrategy(
        model,
        server.method,
        MethodSettings.of(config),
        device=device,
        # What a method's own images earn is seen beside images that nobody made.
        with_control=server.control and server.test_set and find_method(server.method).makes_images,
        min_clients=server.min_clients,
        wait_for_nodes=server.wait_for_nodes,
        patience=server.patience,
        absence=server.absence,
        run_dir=folder.path,
        resume=folder.settings is not None,
        uploads_from=server.uploads_from or None,
        exclude_clients=split_names("server.exclude-clients", server.exclude_clients),
        federated_evaluation=server.federated_evaluation,
        send_model=server.send_model,
        evaluation_metrics=(HELD_OUT, TRAINED_ON),
    )
