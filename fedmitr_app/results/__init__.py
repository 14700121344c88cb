"""What a run found out: measured after the last step, then written to the run folder."""

from fedmitr_app.results.measure import EVALUATION, Results, measure
from fedmitr_app.results.tables import client_rows, metrics_of
from fedmitr_app.results.write import write_results

__all__ = ["EVALUATION", "Results", "client_rows", "measure", "metrics_of", "write_results"]
