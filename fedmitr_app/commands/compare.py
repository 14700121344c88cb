"""``fedmitr compare RUN_DIR RUN_DIR...``: several runs beside each other, on one page."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedmitr_app.report.comparison import comparison_text, read_runs, write_comparison
from fedmitr_app.utils.text import harmless


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="fedmitr compare",
        description="Compare completed runs: accuracies, times, and the settings that differ. Runs "
        "that differ in nothing but the seed are also shown as one, with mean and deviation.",
    )
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="run_dir", help="run folders")
    parser.add_argument(
        "--output", type=Path, default=Path("comparison.html"), help="page (default %(default)s)"
    )
    asked = parser.parse_args(arguments)
    runs = read_runs(asked.run_dirs)
    page = write_comparison(runs, asked.output)
    print(f"{comparison_text(runs)}\n\npage: {harmless(page.resolve())}")
    return 0
