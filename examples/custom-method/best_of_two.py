"""A one-shot method of one's own: the merged model or FedAvg, as is nearer to the ensemble."""

import torch

from fedmitr_app.inversion import draw_initial_images
from fedmitr_app.methods import METHODS, MethodResult, Task, register
from fedmitr_app.utils.randomness import generator


@register("best-of-two", reads=["merge", "teacher"])
def best_of_two(task: Task) -> MethodResult:
    """Ask both and the ensemble about generic images: no image of the clients is needed."""
    rng = generator(task.settings.seed, "best-of-two")
    images = draw_initial_images("procedural", 256, task.model.spec, rng).to(task.device)
    with torch.no_grad():
        wanted = task.teacher(images).logits.softmax(-1)

    @torch.no_grad()
    def distance(fused: MethodResult) -> float:
        return float((fused.predict(images).softmax(-1) - wanted).abs().sum(-1).mean())

    return min((METHODS[name](task) for name in ("merged", "fedavg")), key=distance)
