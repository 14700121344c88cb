"""A run's life on the server: θ₀, the run folder, one round, fusion, what is measured of it."""

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedmitr_app.config import (
    Config,
    as_run_config,
    changed_from_preset,
    check_source,
    flatten,
    given_settings,
    parse_config,
    require_same,
)
from fedmitr_app.errors import ConfigError
from fedmitr_app.methods import check_method
from fedmitr_app.methods.student import CHECKPOINT
from fedmitr_app.models import (
    InputSpec,
    PatchViT,
    build_vit,
    require_compiler,
    resolve_auto,
    without_auto,
)
from fedmitr_app.partitions import (
    ImageSet,
    class_names,
    join_names,
    load_test_set,
    split_names,
)
from fedmitr_app.report.tables import final_lines
from fedmitr_app.results import EVALUATION, Results, measure, write_results
from fedmitr_app.run_folder import COMPLETED, RunFolder
from fedmitr_app.strategies.flower_run import FlowerRun
from fedmitr_app.strategies.one_shot import CONTROL
from fedmitr_app.utils.device import device_lines, resolve_device
from fedmitr_app.utils.environment import describe_environment

_log = logging.getLogger(__name__)

_SHOWN_SETTINGS = 5

UNFINISHED = (CHECKPOINT, CONTROL, EVALUATION)
"""What a run that is gone on with needs, and a complete one does not."""


@dataclass(frozen=True)
class ServerInputs:
    """What the server knows before the round."""

    model: PatchViT
    class_names: tuple[str, ...]
    test_set: ImageSet | None


def run(flower: FlowerRun, run_config: dict[str, Any]) -> RunFolder:
    """Do the whole run and return its folder.

    Raises
    ------
    FedmitrError
        For settings, data or folders that can't work, before any training; for a fusion
        that diverges, after it.
    AggregationError
        If too few nodes or usable uploads come.
    """
    started = time.monotonic()
    config = parse_config(given_settings(run_config, flower.given))
    check_method(config)
    if flower.simulated:  # all clients read what is set here, also if the server doesn't
        check_source(config)
    device = resolve_device(config.server.device, "server.device")
    inputs = prepare(config, device)
    folder = RunFolder.create(
        config.output.run_dir, config.seed, config.output.resume, flower.run_id
    )
    flower.on_exit(folder.stop)
    _log.info("run folder: %s", folder.path)
    _log.info("%s", _settings_line(config))
    try:
        return _work_in(folder, flower, config, inputs, device, started)
    except BaseException as error:
        folder.end_by(error)
        raise
    finally:
        folder.close()


def _settings_line(config: Config) -> str:
    """Say how far the settings are from the preset's, and where all of them are kept."""
    changed = changed_from_preset(config)
    told = f"{len(changed)} changed" if changed else "none changed"
    if 0 < len(changed) <= _SHOWN_SETTINGS:
        told += f" ({as_run_config(changed)})"
    return f"settings: preset {config.preset!r}, {told}; all are in the run folder's config.json"


def _work_in(
    folder: RunFolder,
    flower: FlowerRun,
    config: Config,
    inputs: ServerInputs,
    device: torch.device,
    started: float,
) -> RunFolder:
    chosen = resolve_auto(config.model, inputs.model, device, folder.settings)
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
    if inputs.test_set is not None:
        _log.info("data: %s", inputs.test_set.read)
    folder.write_json("config.json", settings)
    environment = describe_environment()
    folder.write_json("environment.json", environment)
    results = fuse_and_measure(flower, config, inputs, folder, device)
    seconds = time.monotonic() - started
    results = replace(results, simulated=flower.simulated, total_seconds=seconds)
    rows, metrics = write_results(folder, results, config, environment)
    folder.finish(COMPLETED)
    folder.drop(*UNFINISHED)
    for line in final_lines(rows, metrics, folder.path):
        _log.info(line)
    return folder


def prepare(config: Config, device: torch.device) -> ServerInputs:
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
    model = build_vit(without_auto(config.model), spec, len(names), config.seed)
    if server.compile:
        require_compiler(device)
        model.compiled = True
    test_set = load_test_set(data) if server.test_set else None
    if test_set is not None and test_set.class_names != names:
        allowed = f"'' or {join_names(test_set.class_names)!r}"
        raise ConfigError.bad_value("server.classes", server.classes, allowed)
    return ServerInputs(model, names, test_set)


def fuse_and_measure(
    flower: FlowerRun, config: Config, inputs: ServerInputs, folder: RunFolder, device: torch.device
) -> Results:
    """Do the one round and measure what it gave."""
    # Elsewhere a node may hold other data, or another share of them, than the server would deal.
    deal = inputs.test_set is not None and flower.simulated
    result, labels = flower.fuse(config, inputs.model, inputs.class_names, folder, device, deal)
    assert result.fused is not None and result.task is not None  # fuse raises, or fills them in
    return measure(
        outcome=result.outcome,
        global_state=result.arrays.to_torch_state_dict(),
        fused=result.fused,
        control=result.control,
        task=result.task,
        model=inputs.model,
        names=inputs.class_names,
        test_set=inputs.test_set,
        labels=labels,
        on_shards=result.scores,
        left_out=result.left_out,
        config=config,
        folder=folder,
        device=device,
    )
