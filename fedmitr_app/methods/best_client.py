"""One client's model as it is: what a round gives without any fusion."""

from fedmitr_app.distillation.students import best_client as most_agreeing
from fedmitr_app.inversion import draw_initial_images
from fedmitr_app.methods.registry import register
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.task import Task
from fedmitr_app.utils.randomness import generator

IMAGES = 256


@register("best-client", reads=["merge", "teacher"])
def best_client(task: Task) -> MethodResult:
    """Choose the client that agrees most with the ensemble on procedural images.

    A server without data can't know which client is best on real images: this is its guess
    (choice).
    """
    rng = generator(task.settings.seed, "best-client")
    images = draw_initial_images("procedural", IMAGES, task.model.spec, rng).to(task.device)
    chosen = most_agreeing(task.clients, task.teacher, images)
    return MethodResult(model=task.clients[chosen].model)
