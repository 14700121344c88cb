"""``fedmitr experiments``: run an experiment file and write its tables and figures."""

import argparse
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmitr_app.errors import ConfigError
from fedmitr_app.experiments import differences
from fedmitr_app.experiments.figures import draw_figures
from fedmitr_app.experiments.grid import Grid, read_grid
from fedmitr_app.experiments.run import run_grid
from fedmitr_app.experiments.tables import latex, markdown, tidy
from fedmitr_app.utils.device import resolve_device
from fedmitr_app.utils.files import unwritable, write_text

DIFFERENCES = (
    "Differences: mean ± standard error over the seeds, each seed's two rows with each other; the "
    "interval by Student's t. What it says nothing of, more seeds may."
)


def main(arguments: Sequence[str]) -> int:
    """Run the command: 0 if every cell has its result, else 1."""
    parser = argparse.ArgumentParser(
        prog="fedmitr experiments",
        description="Run an experiment file and write its tables and figures.",
    )
    parser.add_argument("experiment", type=Path, help="a file such as experiments/digits.toml")
    parser.add_argument("results", type=Path, help="folder; what is there already is not redone")
    parser.add_argument("--workers", type=int, default=1, help="processes at once (CPU)")
    parser.add_argument("--device", default="auto", help="'auto', 'cpu', 'cuda' or 'cuda:N'")
    parser.add_argument("--no-training", action="store_true", help="use uploads that are there")
    parser.add_argument(
        "--set",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="run-config settings for all rows, such as client.epochs=10",
    )
    given = parser.parse_args(arguments)
    if given.workers < 1:
        raise ConfigError.bad_value("--workers", given.workers, "at least 1")
    grid = read_grid(given.experiment, _settings(given.set))
    device = resolve_device(given.device, "--device")
    if device.type == "cuda" and given.workers > 1:
        raise ConfigError.bad_value("--workers", given.workers, "1 on a GPU, which one cell fills")
    folder = given.results / given.experiment.stem
    try:
        folder.mkdir(parents=True, exist_ok=True)
        results = run_grid(
            grid, given.results, device=device, workers=given.workers, train=not given.no_training
        )
        page = _write(folder, grid, results, _provenance(results, arguments))
    except OSError as error:
        raise unwritable(given.results, error) from error
    print(f"\n{page}\ntables and figures: {folder.resolve()}")
    return int(any(result["status"].startswith("failed") for result in results))


def _write(folder: Path, grid: Grid, results: list[dict[str, Any]], provenance: str) -> str:
    """Write tables and figures; return ``table.md``."""
    frame = tidy(results)
    write_text(folder / "results.csv", frame.to_csv(index=False))
    tex, tables = latex(frame), markdown(frame)
    if grid.against:
        between = differences.paired(frame, grid.against)
        write_text(folder / "differences.csv", between.to_csv(index=False))
        tex += "\n" + differences.latex(frame, grid.against)
        tables += f"\n{differences.markdown(frame, grid.against)}\n{DIFFERENCES}\n"
    write_text(folder / "table.tex", tex)
    page = f"# {grid.title}\n\n{tables}\n{provenance}\n"
    write_text(folder / "table.md", page)
    draw_figures(frame, folder, grid.curve)
    return page


def _settings(words: list[str]) -> dict[str, Any]:
    """``key=value`` with the value as in TOML; a bare word is a string."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--set {word!r} must be KEY=VALUE, such as client.epochs=10.")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    return found


def _provenance(results: list[dict[str, Any]], arguments: Sequence[str]) -> str:
    made = [result for result in results if "code" in result]
    made_by = sorted({f"{result['code']}, {result['device']}" for result in made})
    words = {"validation": "held-out training images", "test": "test images"}
    splits = {result.get("split") for result in made}
    held = " or ".join(words[split] for split in words if split in splits) or "no image"
    seeds = sorted({result["seed"] for result in results})
    return "\n".join(
        [
            f"Accuracy on {held} after the last step; mean ± standard deviation over the seeds "
            f"{', '.join(map(str, seeds))}. Server seconds: the method's own work, evaluation "
            "apart; of processor time on a CPU.",
            f"Command: `fedmitr experiments {shlex.join(arguments)}`.",
            f"Each cell by {'; or '.join(made_by)}.",
        ]
    )
