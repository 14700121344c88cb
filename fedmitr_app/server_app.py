"""Flower's entry point on the server: ``flwr run`` starts a run here."""

import warnings

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmitr_app.run import run
from fedmitr_app.strategies.flower_run import FlowerRun
from fedmitr_app.strategies.logs import join_flower_log
from fedmitr_app.utils.progress import sign_of_life

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the one round and leave the run folder behind."""
    join_flower_log()
    # Ray's advice to its own users, which a run prints whatever they do.
    warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
    # An error that goes on makes the run fail; Flower's log then ends with its sentence.
    with sign_of_life():
        run(FlowerRun(grid), context.run_config)
