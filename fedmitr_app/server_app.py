"""The server: θ₀, one round, fusion, evaluation, and the run folder."""

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.exception import AggregationError
from flwr.supercore.exit import add_exit_handler
from numpy.typing import NDArray

from fedmitr_app.config import (
    Config,
    as_run_config,
    check_source,
    differing,
    flatten,
    given_settings,
    parse_config,
    require_same,
)
from fedmitr_app.errors import ConfigError, FedmitrError
from fedmitr_app.evaluation import HELD_OUT, TRAINED_ON
from fedmitr_app.methods import MethodSettings, check_method, find_method
from fedmitr_app.methods.student import CHECKPOINT
from fedmitr_app.models import (
    InputSpec,
    PatchViT,
    build_vit,
    decide,
    plain,
    require_compiler,
    settings_of,
)
from fedmitr_app.partitions import (
    ImageSet,
    class_names,
    join_names,
    label_matrix,
    load_test_set,
    split_names,
)
from fedmitr_app.reporting import COMPLETED, RunFolder, describe_environment, resolve_device
from fedmitr_app.reporting.environment import device_lines
from fedmitr_app.reporting.table import final_lines
from fedmitr_app.results import EVALUATION, Results, measure, write_results
from fedmitr_app.strategies import OneShotStrategy
from fedmitr_app.strategies.logs import join_flower_log
from fedmitr_app.strategies.messages import given_keys, is_simulation
from fedmitr_app.strategies.nodes import await_ray
from fedmitr_app.strategies.one_shot import CONTROL
from fedmitr_app.strategies.records import GIVEN_KEY

_log = logging.getLogger(__name__)

UNFINISHED = (CHECKPOINT, CONTROL, EVALUATION)
"""What a run that is gone on with needs, and a complete one does not."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the one round and leave the run folder behind."""
    join_flower_log()
    try:
        run(grid, context.run_config)
    except (FedmitrError, AggregationError) as error:
        # What the user can mend is a sentence; only an error that goes on makes the run fail.
        _log.error("%s", error)
        raise


def run(grid: Grid, run_config: dict[str, Any]) -> RunFolder:
    """Do the whole run on a grid and return its folder.

    Raises
    ------
    FedmitrError
        For settings, data or folders that can't work, before any training; for a fusion
        that diverges, after it.
    AggregationError
        If too few nodes or usable uploads come.
    """
    started = time.monotonic()
    config = parse_config(given_settings(run_config, given_keys(grid)))
    check_method(config)
    if is_simulation(grid):  # all clients read what is set here, also if the server doesn't
        check_source(config)
    device = resolve_device(config.server.device, "server.device")
    setting = prepare(config, device)
    run_id = getattr(grid.run, "run_id", 0)
    folder = RunFolder.create(config.output.run_dir, config.seed, config.output.resume, run_id)
    add_exit_handler(folder.stop)  # a simulation's ServerApp, in a thread, hears of no signal
    _log.info("run folder: %s", folder.path)
    changed = as_run_config(differing(config))
    _log.info("settings that differ from their defaults: %s", changed or "none")
    try:
        return _work_in(folder, grid, config, setting, device, started)
    except BaseException as error:
        folder.end_by(error)
        raise
    finally:
        folder.close()


def _work_in(
    folder: RunFolder,
    grid: Grid,
    config: Config,
    setting: "Setting",
    device: torch.device,
    started: float,
) -> RunFolder:
    chosen = decide(config.model, setting.model, device, folder.settings)
    config = replace(config, model=chosen)
    settings = flatten(config)
    if folder.settings is not None:
        require_same(folder.settings, settings)
        if folder.completed:
            _log.info("The run is complete: there is nothing to go on with.")
            folder.drop(*UNFINISHED)
            return folder
        folder.begin()
        _log.info("Going on with the run that began %s.", folder.started)
    for line in device_lines("server", device, torch.get_num_threads()):
        _log.info(line)
    if setting.test_set is not None:
        _log.info("data: %s", setting.test_set.read)
    folder.write_json("config.json", settings)
    environment = describe_environment()
    folder.write_json("environment.json", environment)
    results = fuse_and_measure(grid, config, setting, folder, device)
    seconds = time.monotonic() - started
    results = replace(results, simulated=is_simulation(grid), total_seconds=seconds)
    rows, metrics = write_results(folder, results, config, environment)
    folder.finish(COMPLETED)
    folder.drop(*UNFINISHED)
    for line in final_lines(rows, metrics, folder.path):
        _log.info(line)
    return folder


@dataclass(frozen=True)
class Setting:
    """What the server knows before the round."""

    model: PatchViT
    class_names: tuple[str, ...]
    test_set: ImageSet | None


def prepare(config: Config, device: torch.device) -> Setting:
    """Build θ₀ and load the test set, if the server has one.

    Raises
    ------
    FedmitrError
        If the data or the model can't be had, or can't be compiled for ``device``.
    """
    data, server = config.data, config.server
    names = split_names("server.classes", server.classes)
    if len(set(names)) < len(names):
        raise ConfigError.bad_value("server.classes", server.classes, "names that all differ")
    if not names:
        if not server.test_set:
            raise ConfigError.bad_value(
                "server.classes",
                "",
                "the class names, separated by commas, because server.test-set = false means "
                "that the server has no data to read them from",
            )
        names = class_names(data)
    spec = InputSpec.of(data)
    # What 'auto' comes to is told the model once there is a folder to write it down in.
    model = build_vit(plain(config.model), spec, len(names), config.seed)
    if server.compile:
        require_compiler(device)
        model.compiled = True
    test_set = load_test_set(data) if server.test_set else None
    if test_set is not None and test_set.class_names != names:
        allowed = f"'' or {join_names(test_set.class_names)!r}"
        raise ConfigError.bad_value("server.classes", server.classes, allowed)
    return Setting(model, names, test_set)


def build_strategy(
    config: Config, model: PatchViT, folder: RunFolder, device: torch.device
) -> OneShotStrategy:
    """Return the strategy that ``server.method`` names."""
    server = config.server
    # What uploads must declare is read off the model itself.
    return OneShotStrategy(
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


def fuse_and_measure(
    grid: Grid, config: Config, setting: Setting, folder: RunFolder, device: torch.device
) -> Results:
    """Run the strategy's one round and measure what it gave."""
    strategy = build_strategy(config, setting.model, folder, device)
    # Elsewhere a node may hold other data, or another share of them, than the server would deal.
    dealt = setting.test_set is not None and is_simulation(grid)
    labels = deal_labels(grid, config, strategy) if dealt else None
    if config.inversion.backend == "ray" and is_simulation(grid):
        await_ray()
    told = {"class-names": list(setting.class_names), GIVEN_KEY: given_keys(grid)}
    told |= settings_of(config.model)
    result = strategy.start(
        grid,
        ArrayRecord(setting.model.vit.state_dict()),
        num_rounds=1,
        timeout=config.server.timeout,
        train_config=ConfigRecord(told),
        evaluate_config=ConfigRecord(told),
    )
    return measure(
        outcome=result.outcome,
        global_state=result.arrays.to_torch_state_dict(),
        fused=result.fused,
        control=result.control,
        task=result.task,
        model=setting.model,
        names=setting.class_names,
        test_set=setting.test_set,
        labels=labels,
        on_shards=result.scores,
        left_out=result.left_out,
        config=config,
        folder=folder,
        device=device,
    )


def deal_labels(grid: Grid, config: Config, strategy: OneShotStrategy) -> NDArray[np.int64]:
    """Deal the data to the nodes that are there, as the clients will, for the report.

    Returns
    -------
    NDArray[np.int64]
        Images of each class that each client gets, ``[clients, classes]``.

    Raises
    ------
    ConfigError, DataError
        If the data can't be dealt to so many: nobody has trained yet.
    """
    earlier = strategy.round.earlier()
    if earlier is not None:
        clients = earlier.asked
    else:
        clients = strategy.expected_nodes = len(strategy.await_nodes(grid))
    return label_matrix(config.data, config.partition, clients, config.seed)
