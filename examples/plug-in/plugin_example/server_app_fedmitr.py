"""The server of an ordinary Flower project.

``server_app.py`` and ``server_app_fedmitr.py`` differ in the line that makes the strategy
and in nothing else; to that end both import both strategies.
"""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg  # noqa: F401

from fedmitr_app.strategies import FedMITR  # noqa: F401
from plugin_example import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation and print the accuracy on held-out digits."""
    model = task.build_model()
    strategy = FedMITR(model)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=evaluate,
    )


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Measure the global model on held-out digits."""
    model = task.build_model()
    model.load_state_dict(arrays.to_torch_state_dict())
    accuracy = task.test(model, *task.load_split(test=True))
    print(f"round {server_round}: accuracy {accuracy:.3f}")
    return MetricRecord({"accuracy": accuracy})
