"""The client of an ordinary Flower project; it knows nothing of one-shot methods."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from plugin_example import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model on local data."""
    model, images, labels = _prepare(message, context)
    loss = task.train(
        model,
        images,
        labels,
        epochs=context.run_config["local-epochs"],
        lr=context.run_config["learning-rate"],
    )
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"train-loss": loss, "num-examples": len(labels)}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received model on local data."""
    model, images, labels = _prepare(message, context)
    metrics = {"accuracy": task.test(model, images, labels), "num-examples": len(labels)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def _prepare(message: Message, context: Context):
    model = task.build_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    node = context.node_config
    return model, *task.load_partition(node["partition-id"], node["num-partitions"])
