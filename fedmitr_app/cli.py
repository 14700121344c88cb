"""The command line, ``fedmitr``: one word chooses the command."""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import NamedTuple

from fedmitr_app.errors import FedmitrError


class Command(NamedTuple):
    """A command, whose module is imported only when it is asked for."""

    module: str
    does: str


COMMANDS = {
    "compare": Command("fedmitr_app.commands.compare", "compare completed runs on one page"),
    "check": Command("fedmitr_app.commands.check", "say what a run would do and take"),
    "predict": Command("fedmitr_app.commands.predict", "classify images with a run's global model"),
    "experiments": Command(
        "fedmitr_app.commands.experiments", "run an experiment file: tables and figures"
    ),
    "diagnose": Command(
        "fedmitr_app.commands.diagnose", "measure the theory's claims on a finished run"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit code.

    A user's mistake is one sentence and 1, argparse's own exit is 2.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="fedmitr",
        description="One-shot federated learning with Vision Transformers.",
        epilog="\n".join(
            ["commands (each has a --help of its own):"]
            + [f"  {name:{width}}  {command.does}" for name, command in COMMANDS.items()]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command", help=", ".join(COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the command")
    asked = parser.parse_args(given)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fedmitr_app").setLevel(logging.INFO)
    command = importlib.import_module(COMMANDS[asked.command].module)
    try:
        code: int = command.main(asked.arguments)
    except FedmitrError as error:
        print(error, file=sys.stderr)
        return 1
    return code
