"""A whole run of this commit and of an earlier one, in turn on one machine: time and accuracy.

    python -m benchmarks.before_after --before 9158ff6 --seeds 0 1 2

Each runs README's own command in a checkout of its own (the default preset, five clients on this
machine's CPUs). Both use the packages installed here. The folder gets ``before_after.csv``.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from benchmarks.common import Results, print_hardware
from benchmarks.whole_run import ROOT, run_once


def main() -> None:
    """Run both for each seed, in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", required=True, help="the earlier commit")
    parser.add_argument("--after", default="HEAD", help="the later one (default: HEAD)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    results = Results(print_hardware())
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkouts = {name: Path(folder) / name for name in ("before", "after")}
        try:
            for name, checkout in checkouts.items():
                _git("worktree", "add", "--detach", str(checkout), getattr(asked, name))
            for seed in asked.seeds:
                for name, checkout in checkouts.items():
                    for measure, (value, unit) in _measure(checkout, seed).items():
                        case = f"{name} ({getattr(asked, name)}), seed {seed}"
                        results.add("before and after", case, measure, value, unit)
                        found.setdefault(measure, {}).setdefault(name, []).append(value)
                    results.table().to_csv(asked.out / "before_after.csv", index=False)
        finally:
            for checkout in checkouts.values():
                _git("worktree", "remove", "--force", str(checkout), check=False)
    for measure, values in found.items():
        means = {name: statistics.mean(values[name]) for name in checkouts}
        told = ", ".join(f"{name} {mean:.4g}" for name, mean in means.items())
        print(f"{measure}: {told}; before over after {means['before'] / means['after']:.3g}")


def _measure(checkout: Path, seed: int) -> dict[str, tuple[float, str]]:
    """Return a run's seconds and accuracies."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        run = run_once(f"seed={seed}", Path(home), checkout)
        metrics = json.loads((run.folder / "metrics.json").read_text())
    return {
        "whole command": (run.whole, "s"),
        "from the server's start to the report": (metrics["seconds"]["total"], "s"),
        "student": (100 * metrics["accuracy"]["student"], "%"),
        "teacher": (100 * metrics["accuracy"]["teacher"], "%"),
    }


def _git(*words: str, check: bool = True) -> None:
    subprocess.run(["git", *words], cwd=ROOT, check=check, capture_output=True)


if __name__ == "__main__":
    main()
