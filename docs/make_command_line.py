"""Write what the commands' parsers say into ``docs/reference/command-line.md``."""

import argparse
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

from fedmitr_app.cli import COMMANDS

PAGE = Path(__file__).resolve().parent / "reference" / "command-line.md"


class _Made(Exception):
    """A command's parser, when the command would use it."""


def parser_of(main: Callable[[Sequence[str]], int]) -> argparse.ArgumentParser:
    """Return the parser that a command makes when it is called; nothing else of it is done."""

    def stop(parser: argparse.ArgumentParser, *arguments: object) -> None:
        raise _Made(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            main([])
        except _Made as made:
            (parser,) = made.args
            return parser
    raise TypeError(f"{main.__module__}.main parses no arguments")


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return every command's parser, by the command's name, sorted."""
    modules = {name: importlib.import_module(COMMANDS[name].module) for name in sorted(COMMANDS)}
    return {name: parser_of(module.main) for name, module in modules.items()}


def page() -> str:
    """Return the page."""
    lines = [
        "# Command line",
        "",
        "`fedmitr` has one command for each thing that it does, and `fedmitr COMMAND --help` shows "
        "the same as here.",
        "A mistake ends with one sentence and exit code 1; wrong arguments end with 2. Runs are "
        "started by Flower's own",
        "`flwr run` ([Choose settings](../how-to/choose-settings.md)).",
        "",
        "Made by `docs/make_command_line.py`.",
    ]
    for name, parser in parsers().items():
        lines += ["", f"## fedmitr {name}", "", *_described(parser)]
    return "\n".join(lines) + "\n"


def _described(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield _escaped(parser.description or "")
    yield from ("", "| argument | |", "|---|---|")
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            known = {**vars(action), "prog": parser.prog}
            yield f"| {_shown(action)} | {_escaped((action.help or '') % known)} |"


def _shown(action: argparse.Action) -> str:
    """Return how an argument is typed."""
    names = action.metavar or action.dest.replace("-", "_").upper()
    value = " ".join(names) if isinstance(names, tuple) else str(names)
    if action.choices is not None and action.metavar is None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if action.nargs in ("+", "*"):
        value = f"{value} …"
    if not action.option_strings:
        typed = f"[{value}]" if action.nargs in ("?", "*") else value
    else:
        typed = action.option_strings[-1] + ("" if action.nargs == 0 else f" {value}")
    return f"`{typed}`"


def _escaped(words: str) -> str:
    """Return words as Markdown shows them; options in them as code."""
    found = " ".join(words.split()).replace("|", "\\|").replace("<", "&lt;")
    return " ".join(
        f"`{word}`" if word.startswith("--") and word.strip("-") else word for word in found.split()
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
