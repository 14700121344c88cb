"""Commands as a documentation page has them, read by the programs' own parsers and not done."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import typer
from flwr.cli.app import app as flower

from fedmitr_app.config import check_source, given_settings, parse_config
from fedmitr_app.experiments.grid import read_grid
from fedmitr_app.methods import check_method
from fedmitr_app.strategies.run_config import read_run_config
from tests.helpers.documents import options

ROOT = Path(__file__).parents[2]
FEDERATION = {"num-supernodes", "client-resources-num-cpus", "client-resources-num-gpus"}
"""Of Flower's options for a simulation those that the pages use."""


def script(name: str) -> ModuleType:
    """Import a script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(words: list[str]) -> None:
    """Have a command's own parser read it, and the settings that it gives; raises if it can't be.

    Raises ``KeyError`` for a program that nobody here knows.
    """
    _BY_PROGRAM[words[0]](words)


def check_settings(given: list[str]) -> None:
    """Read what stands after ``--run-config`` as a run would, to the point of reading data."""
    if not given:
        return
    found = read_run_config(given, ROOT)
    config = parse_config(given_settings(found.values, found.given))
    check_method(config)
    if config.server.test_set:  # else the data are the nodes' own
        check_source(config)


def _flwr(words: list[str]) -> None:
    _by_click(typer.main.get_command(flower), words)
    check_settings(options(words, "--run-config"))
    for federation in options(words, "--federation-config"):
        for pair in shlex.split(federation):
            name, _, number = pair.partition("=")
            assert name in FEDERATION and float(number) >= 0, pair


def _fedmitr(words: list[str]) -> None:
    parser = script("make_command_line").parsers()[words[1]]
    try:
        asked = parser.parse_args(words[2:])
    except SystemExit as error:
        raise AssertionError(f"{parser.prog} can't read {words}") from error
    check_settings(options(words, "--run-config"))
    if words[1] == "experiments":
        read_grid(ROOT / asked.experiment, dict(pair.split("=", 1) for pair in asked.set or []))


def _pip(words: list[str]) -> None:
    assert words[1] == "install", words
    for name in options(words, "-e"):
        assert (ROOT / name.partition("[")[0] / "pyproject.toml").is_file(), words


def _ray(words: list[str]) -> None:
    from ray.scripts.scripts import cli

    _by_click(cli, words)


def _by_click(command: Any, words: list[str]) -> None:
    rest = words[1:]
    while hasattr(command, "commands"):
        assert rest and rest[0] in command.commands, f"{words[0]} knows no {words}"
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(" ".join(words), list(rest))


def _export(words: list[str]) -> None:
    assert all(re.fullmatch("(FLWR|HF)_[A-Z_]+=1", pair) for pair in words[1:]), words


_BY_PROGRAM = {
    "flwr": _flwr,
    "fedmitr": _fedmitr,
    "pip": _pip,
    "ray": _ray,
    "export": _export,
}
