"""What a newcomer waits for: from ``flwr run`` to the first step, and to the end."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import Results

ROOT = Path(__file__).parents[1]
LONGEST = 1800
FLWR = Path(sys.executable).with_name("flwr")  # beside the Python that runs this
RUN = [str(FLWR), "run", ".", "--stream", "--federation-config"]
FEDERATION = "num-supernodes=5 client-resources-num-cpus=1 client-resources-num-gpus=0.0"


class Run(NamedTuple):
    """A run that came to its end."""

    first: float
    """Seconds to the first training step."""
    whole: float
    """Seconds of the whole command."""
    folder: Path
    """Of its results."""


def run_once(run_config: str, home: Path, project: Path = ROOT) -> Run:
    """Run README's own command with ``run_config`` in ``project`` and time what its log says.

    Everything that Flower and the run leave is under ``home``.
    """
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{FLWR.parent}{os.pathsep}{os.environ['PATH']}",
        # This project's package, whichever is installed.
        "PYTHONPATH": str(project),
    }
    config = f"{run_config} output.run-dir='{home}/run'"
    started, first, log = time.perf_counter(), None, []
    process = subprocess.Popen(
        [*RUN, FEDERATION, "--run-config", config],
        cwd=project,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    limit = threading.Timer(LONGEST, process.kill)
    limit.start()
    try:
        for line in process.stdout:
            log.append(line)
            if first is None and ": training: " in line:
                first = time.perf_counter() - started
        taken = time.perf_counter() - started
        done = (home / "run" / "report.html").exists()
    finally:
        limit.cancel()
        process.kill()
        process.wait()
        subprocess.run(["pkill", "-f", f"flower-superlink.*{home}"], check=False)
    if first is None or not done:
        print("".join(log[-20:]))
        raise SystemExit("flwr run did not come to its end: its last lines stand above.")
    return Run(first, taken, home / "run")


def whole_run(results: Results, run_config: str = "preset='quick'") -> None:
    """Time one run."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        run = run_once(run_config, Path(home))
    results.add("whole run", run_config, "to the first training step", run.first, "s")
    results.add("whole run", run_config, "to the report", run.whole, "s")
