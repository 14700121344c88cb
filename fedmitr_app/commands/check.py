"""``fedmitr check``: what a run would do, and take; nothing is trained."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedmitr_app.config import (
    Config,
    as_run_config,
    check_source,
    differing,
    flatten,
    given_settings,
    parse_config,
)
from fedmitr_app.config.describe import described
from fedmitr_app.errors import ConfigError
from fedmitr_app.estimate import Estimate, estimate, measure_passes
from fedmitr_app.methods import check_method
from fedmitr_app.models import resolve_auto
from fedmitr_app.partitions import label_matrix
from fedmitr_app.run import ServerInputs, prepare
from fedmitr_app.strategies.run_config import read_run_config
from fedmitr_app.utils.device import device_lines, resolve_device
from fedmitr_app.utils.progress import duration

MIB = 2**20


def main(arguments: Sequence[str]) -> int:
    """Run the command; raises ``FedmitrError`` if such a run couldn't begin."""
    parser = argparse.ArgumentParser(
        prog="fedmitr check",
        description="Say what a run would do with data, model and settings, and roughly what it "
        "would take on this machine. Nothing is trained or written.",
    )
    parser.add_argument(
        "project", nargs="?", type=Path, default=Path(), help="the app's folder, as of flwr run"
    )
    parser.add_argument(
        "--run-config",
        action="append",
        default=[],
        metavar="SETTINGS",
        help="as flwr run takes it: 'key=value key=value', or a TOML file",
    )
    parser.add_argument(
        "--clients", type=int, default=2, help="nodes; %(default)s, as Flower simulates, by default"
    )
    parser.add_argument("--all", action="store_true", help="show every setting")
    asked = parser.parse_args(arguments)
    if asked.clients < 1:
        raise ConfigError.bad_value("--clients", asked.clients, "a whole number of at least 1")
    run_config, given = read_run_config(asked.run_config, asked.project)
    for line in _lines(run_config, given, asked.clients, asked.all):
        print(line, flush=True)
    return 0


def _lines(
    run_config: dict[str, Any], given: Sequence[str], clients: int, every: bool
) -> Iterator[str]:
    config = parse_config(given_settings(run_config, given))
    check_method(config)
    check_source(config)
    yield from _settings_lines(config, every)
    device = resolve_device(config.server.device, "server.device")
    yield from ("", *device_lines("server", device, 1)[:1])
    inputs = prepare(config, device)
    config = replace(config, model=resolve_auto(config.model, inputs.model, device))
    yield from _model_lines(config, inputs)
    matrix = label_matrix(config.data, config.partition, clients, config.seed)
    yield from _data_lines(config, inputs, matrix)
    shards = [int(count) - round(config.client.holdout * count) for count in matrix.sum(1)]
    tested = 0 if inputs.test_set is None else len(inputs.test_set)
    model = inputs.model.eval().requires_grad_(False)
    passes = measure_passes(config, model, device)
    yield from _cost_lines(config, estimate(config, model, passes, shards, tested))
    words = as_run_config({key: run_config[key] for key in given})
    told = f' --run-config "{words}"' if words else ""
    yield from ("", f"Nothing was trained. To do it: flwr run .{told}")


def _settings_lines(config: Config, every: bool) -> Iterator[str]:
    flat, changed = flatten(config), differing(config)
    shown = [each for each in described() if every or each.basic or each.key in changed]
    yield f"settings ({len(shown)} of {len(flat)}; * differs from the default):"
    for setting in shown:
        mark = "*" if flat[setting.key] != setting.default else " "
        yield f"{mark} {as_run_config({setting.key: flat[setting.key]})}"
    if not every:
        yield "  ... --all shows the others"


def _model_lines(config: Config, inputs: ServerInputs) -> Iterator[str]:
    model, spec = inputs.model, inputs.model.spec
    parameters = sum(value.numel() for value in model.parameters())
    start = (
        repr(config.model.weights) if config.model.weights else f"from scratch, seed {config.seed}"
    )
    channels = "1 channel" if spec.channels == 1 else f"{spec.channels} channels"
    yield (
        f"model: {config.model.name}, {parameters / 1e6:.2f} M parameters, {spec.size} px of "
        f"{channels} as {model.num_patches} patches; weights: {start}"
    )
    yield f"products: {config.model.precision} by {config.model.matmul}"


def _data_lines(config: Config, inputs: ServerInputs, matrix: np.ndarray) -> Iterator[str]:
    if inputs.test_set is not None:
        yield f"data: {inputs.test_set.read}"
    sizes, classes = matrix.sum(1), (matrix > 0).sum(1)
    kind = config.partition.kind
    alpha = f", alpha {config.partition.alpha:g}" if kind == "dirichlet" else ""
    yield (
        f"clients: {len(matrix)}, dealt by {kind}{alpha}: {sizes.min()} to {sizes.max()} images of "
        f"{classes.min()} to {classes.max()} of the {matrix.shape[1]} classes each"
    )
    held = matrix.sum(0)
    least = int(held.argmin())
    name = inputs.class_names[least]
    yield f"the rarest class, {name!r}, has {held[least]} training images on all clients"


def _cost_lines(config: Config, found: Estimate) -> Iterator[str]:
    yield "time on this machine, as busy as it is just now (one thing after the other, roughly):"
    for stage, seconds in found.seconds.items():
        yield f"  {stage}: {duration(seconds)}"
    if config.server.method != "fedmitr":
        yield f"  server.method = {config.server.method!r} itself: not estimated"
    yield (
        f"memory: each client {found.client / MIB:,.0f} MiB, the server {found.server / MIB:,.0f} "
        f"MiB; each client is sent {found.upload / MIB:,.1f} MiB, and sends as much once"
    )
