"""Flower's entry point on the server: ``flwr run`` starts a run here."""

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.exception import AggregationError

from fedmitr_app.errors import FedmitrError
from fedmitr_app.run import run
from fedmitr_app.strategies.flower_run import FlowerRun
from fedmitr_app.strategies.logs import join_flower_log

_log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the one round and leave the run folder behind."""
    join_flower_log()
    try:
        run(FlowerRun(grid), context.run_config)
    except (FedmitrError, AggregationError) as error:
        # What the user can mend is a sentence; only an error that goes on makes the run fail.
        _log.error("%s", error)
        raise
