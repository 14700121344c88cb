"""A reader of a page, who types what it says: every command works, or is known not to be ours."""

import glob
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.cli.run.run import parse_config_args, simulation_config_from_json

from fedmitr_app.cli import main
from fedmitr_app.config import given_settings, parse_config
from fedmitr_app.strategies.run_config import read_run_config
from tests.helpers.documents import Block, blocks, commands, options, run_block
from tests.helpers.federation import TOY, Federation
from tests.helpers.typed import check

# What a test needn't do again, or may not.
ASIDE = ("cd", "export", "hf", "python", ".", "source")


class Reader:
    """Does what a page says, in the working folder, with ``toy`` sizes in place of real ones.

    A run of Flower's is done by the real apps in this process, on a fake grid.
    """

    def __init__(self, toy: Mapping[str, Any] = TOY) -> None:
        self.toy, self.names = dict(toy), {"__name__": "page"}
        self.runs: list[Federation] = []
        self.typed: list[list[str]] = []

    def read(self, page: Path) -> None:
        """Do all that the page's blocks say, in their order."""
        for block in blocks(page, "python", "bash", "toml", "diff"):
            try:
                self._do(page, block)
            except Exception as error:
                error.add_note(f"{page}, line {block.line}")
                raise

    def _do(self, page: Path, block: Block) -> None:
        if block.caption:
            Path(block.caption).parent.mkdir(parents=True, exist_ok=True)
            Path(block.caption).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            run_block(page, block, self.names)
        elif block.language == "bash":
            for words in commands(block.text):
                self._type(words)

    def _type(self, words: list[str]) -> None:
        words = [word.replace("$PWD", os.getcwd()) for word in words]
        self.typed.append(words)
        match words:
            case ["flwr", *_]:
                check(words)
                if words[1] == "run":
                    self._federation(words)
            case ["fedmitr", *rest]:
                assert main(self._made_small(rest)) == 0, words
            case ["patch", "-p1", "-i", _]:
                subprocess.run(words, check=True, timeout=60)
            case ["pip", *_]:
                check(words)
            case _:
                assert words[0] in ASIDE, f"nobody checks {words}"

    def _made_small(self, words: list[str]) -> list[str]:
        """Give a command of ours toy sizes, where the page gives none, and open its wildcards."""
        opened = []
        for word in words:
            found = sorted(glob.glob(word)) if "*" in word and "=" not in word else [word]
            assert found, f"{word} matches nothing"
            opened += found
        given = " ".join(options(words, "--run-config"))
        toy = {key: value for key, value in self.toy.items() if f"{key}=" not in given}
        pairs = [f"{key}={_written(value)}" for key, value in toy.items()]
        if opened[0] == "check":
            opened += ["--run-config", " ".join(pairs)]
        if opened[0] == "experiments":
            own = Path(opened[1]).read_text(encoding="utf-8")
            opened += ["--device", "cpu", "--workers", "1", "--set"]
            opened += [pair for pair in pairs if not pair.startswith("server.")]
            assert not any(f"{key} =" in own for key in toy), "the page sets what a test must"
        return opened

    def _federation(self, words: list[str]) -> None:
        """Run what ``flwr run`` would, with the settings that it would hand over."""
        settings = read_run_config(options(words, "--run-config"), Path(words[2]))
        given = given_settings(settings.values, settings.given)
        parse_config(given)  # as the page has it, whatever the toy's sizes
        asked = parse_config_args(options(words, "--federation-config"))
        nodes = simulation_config_from_json({k.replace("-", "_"): v for k, v in asked.items()})
        folder = Path(str(given.get("output.run-dir") or f"fedmitr-runs/run-{len(self.runs)}"))
        done = Federation(folder.absolute(), clients=nodes.num_supernodes or 2, sizes={})
        done.run(**{**given, **self.toy, "output.run-dir": str(folder.absolute())})
        self.runs.append(done)


def _written(value: Any) -> str:
    """As a run config has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, str) else str(value)
