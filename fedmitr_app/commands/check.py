"""``fedmitr check``: what a run would do, and take; nothing is trained."""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

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
from fedmitr_app.estimate import BUSY, Estimate, Passes, estimate, measure_passes
from fedmitr_app.methods import check_method
from fedmitr_app.models import resolve_auto
from fedmitr_app.partitions import label_matrix
from fedmitr_app.run import ServerInputs, prepare
from fedmitr_app.run_folder.claiming import check_run_dir
from fedmitr_app.strategies.run_config import RunConfig, read_run_config
from fedmitr_app.utils.device import device_lines, resolve_device
from fedmitr_app.utils.files import reason_of
from fedmitr_app.utils.progress import duration
from fedmitr_app.utils.shell import quoted
from fedmitr_app.utils.text import harmless

MIB = 2**20


def main(arguments: Sequence[str]) -> int:
    """Run the command; raises ``FedmitrError`` if such a run couldn't begin."""
    parser = argparse.ArgumentParser(
        prog="fedmitr check",
        description="Say what a run would do with data, model and settings, and roughly what it "
        "would take on this machine. Nothing is trained; a dataset or weights of the hub are "
        "fetched into its cache.",
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
        "--num-supernodes",
        type=int,
        default=2,
        metavar="N",
        help="clients; %(default)s, as Flower simulates, by default",
    )
    parser.add_argument("--all", action="store_true", help="show every setting")
    asked = parser.parse_args(arguments)
    count = asked.num_supernodes
    if count < 1:
        raise ConfigError.bad_value("--num-supernodes", count, "a whole number of at least 1")
    settings = read_run_config(asked.run_config, asked.project)
    # All of it first: a mistake is then the only thing said.
    lines = [*_lines(settings, count, asked.all), "", *_command(asked)]
    for line in lines:
        print(line)
    return 0


def _command(asked: argparse.Namespace) -> list[str]:
    """Say how to do what was checked, for a shell."""
    words = [f"flwr run {shlex.quote(str(asked.project))} --stream"]
    words += [f"--run-config {quoted(given)}" for given in asked.run_config]
    words.append(f'--federation-config "num-supernodes={asked.num_supernodes}"')
    return ["This run can begin; nothing was trained. To do it:", f"  {' '.join(words)}"]


def _lines(settings: RunConfig, clients: int, every: bool) -> Iterator[str]:
    config = parse_config(given_settings(settings.values, settings.given))
    check_method(config)
    check_source(config)
    where = check_run_dir(config.output.run_dir, config.output.resume)
    device = resolve_device(config.server.device, "server.device")
    try:
        inputs = prepare(config, device)
        config = replace(config, model=resolve_auto(config.model, inputs.model, device))
        model = inputs.model.eval().requires_grad_(False)
        passes = measure_passes(config, model, device)
    except (RuntimeError, MemoryError) as error:
        raise ConfigError(
            f"model.name = {config.model.name!r} with these sizes can't be built and run here: "
            f"{reason_of(error)}."
        ) from error
    matrix = label_matrix(config.data, config.partition, clients, config.seed)
    shards = [int(count) - round(config.client.holdout * count) for count in matrix.sum(1)]
    tested = 0 if inputs.test_set is None else len(inputs.test_set)
    yield f"defaults: {settings.defaults}"
    yield f"run folder: {harmless(where)}"
    yield from _settings_lines(config, settings.given, every)
    yield ""
    yield from device_lines("server", device, torch.get_num_threads())[:1]
    yield from map(harmless, _model_lines(config, inputs))
    yield from map(harmless, _data_lines(config, inputs, matrix))
    yield ""
    yield from _cost_lines(config, passes, estimate(config, model, passes, shards, tested))


def _settings_lines(config: Config, given: Sequence[str], every: bool) -> Iterator[str]:
    flat, changed = flatten(config), {*differing(config), *given}
    known = described()
    shown = [each for each in known if every or each.basic or each.key in changed]
    shown.sort(key=lambda each: (each.key not in given, each.key not in changed))
    yield f"settings, {len(shown)} of {len(flat)} (> given, * otherwise not at the default):"
    for setting in shown:
        value, key = flat[setting.key], setting.key
        mark = ">" if key in given else "*" if value != setting.default else " "
        yield f"{mark} {harmless(as_run_config({key: value}))}"
    if not every:
        yield "  ... --all shows the others"


def _model_lines(config: Config, inputs: ServerInputs) -> Iterator[str]:
    model, spec = inputs.model, inputs.model.spec
    parameters = sum(value.numel() for value in model.parameters())
    weights = config.model.weights
    start = repr(weights) if weights else f"from scratch, seed {config.seed}"
    channels = "1 channel" if spec.channels == 1 else f"{spec.channels} channels"
    yield (
        f"model: {config.model.name}, {parameters / 1e6:.2f} M parameters, {spec.size} px of "
        f"{channels} as {model.num_patches} patches; weights: {start}"
    )
    yield f"arithmetic: {config.model.precision} ({config.model.matmul})"


def _data_lines(config: Config, inputs: ServerInputs, matrix: NDArray[np.int64]) -> Iterator[str]:
    if inputs.test_set is not None:
        yield f"data: {inputs.test_set.read}"
    sizes, classes = matrix.sum(1), (matrix > 0).sum(1)
    kind = config.partition.kind
    alpha = f", alpha {config.partition.alpha:g}" if "dirichlet" in kind else ""
    yield (
        f"clients: {len(matrix)}, partition {kind}{alpha}: {sizes.min()} to {sizes.max()} images "
        f"of {classes.min()} to {classes.max()} of the {matrix.shape[1]} classes each"
    )
    held = matrix.sum(0)
    least = int(held.argmin())
    name = inputs.class_names[least]
    yield f"the rarest class, {name!r}, has {held[least]} training images on all clients"


def _cost_lines(config: Config, passes: Passes, found: Estimate) -> Iterator[str]:
    yield "time on this machine, one thing after the other, to a factor of two or so:"
    for stage, seconds in found.seconds.items():
        yield f"  {stage}: {duration(seconds)}"
    if passes.spread > BUSY:
        yield (
            f"  (the machine is busy just now: a pass took {passes.spread:.1f} times the shortest "
            "as a rule, so that a run takes longer)"
        )
    if config.server.method != "fedmitr":
        yield f"  server.method = {config.server.method!r} itself: not estimated"
    yield (
        f"memory: {found.client / MIB:,.0f} MiB for each client that trains at once, "
        f"{found.server / MIB:,.0f} MiB for the server, its test set aside"
    )
    yield f"network: {found.upload / MIB:,.1f} MiB to each client, and as much back, once"
