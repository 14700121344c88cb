"""Co-Boosting: images and ensemble improve each other (Dai et al., ICLR 2024).

"Enhancing One-Shot Federated Learning Through Data and Ensemble Co-Boosting". The paper's, on
top of DENSE's alternation:

- hard samples: an image's cross-entropy counts by its difficulty, 1 - p(label), and the
  generator works against the student on every image (DENSE: only where they decide
  differently);
- diverse samples: what the student sees is moved by epsilon along the gradient of u·A_w(x),
  u drawn from U[-1, 1] per image and class ("output diversification": Tashiro et al., 2020);
- the clients' weights w in the ensemble A_w take a step against the sign of the gradient of
  the cross-entropy on the images so far, clipped to [0, 1]; they start at 1/K.

From its public code: the adversarial term's temperature 3; the *sign* of that gradient (the
paper divides by its L2 norm, and 8/255 in all, spread over an image, would be less than a
thousandth per pixel); in each turn one step of the weights for each turn's images so far.

Choice: w multiplies what the task's teacher already knows of each client and class, and the
teacher normalises the product (with ``teacher.combine = "mean-logits"`` it is the paper's A_w
up to its scale); the student sees the whole pool moved anew in each of ``generator.turns`` parts
of its steps instead of each batch anew, so that its training is else every method's; the
weights' steps take a turn's new images too, from the first turn on (the public code: those of
earlier turns), and the output diversification reads plain logits (the public code: softmax of a
quarter of them). The public code's decay of the step by 0.99 a turn is left out, as too little
for so few turns. More in :mod:`fedmitr_app.methods.rivals.generator`.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedmitr_app.distillation.losses import soft_label_loss
from fedmitr_app.inversion import PoolData
from fedmitr_app.inversion.losses import cross_entropy
from fedmitr_app.methods.registry import DISTILS, register
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.rivals.generator import (
    Boost,
    Objective,
    ensemble_logits,
    generate_and_distil,
    number_of_turns,
)
from fedmitr_app.methods.task import Task
from fedmitr_app.models import InputSpec
from fedmitr_app.teacher import Teacher
from fedmitr_app.utils.randomness import generator

TEMPERATURE = 3.0


@register(
    "co-boosting",
    reads=[*DISTILS, "generator"],
    makes_images=True,
    paper="Dai et al., ICLR 2024",
)
def co_boosting(task: Task) -> MethodResult:
    """Train generators on what is hard, and the ensemble's weights on what they make.

    Returns
    -------
    MethodResult
        Its teacher is the ensemble with the learned weights.

    Raises
    ------
    TrainingError
        If generator or distillation leaves the finite numbers.
    """
    settings = task.settings
    config, chunk = settings.generator, settings.inversion.batch_size
    one_turn = math.ceil(settings.inversion.images / number_of_turns(settings))
    ensemble = WeightedEnsemble.uniform(task.teacher)

    def learn(pool: PoolData, turn: int) -> Teacher:
        nonlocal ensemble
        for images, targets in zip(
            pool.images.split(one_turn), pool.targets.split(one_turn), strict=True
        ):
            ensemble = ensemble.step(images, targets, config.weight_step)
        for client, weight in zip(task.members, ensemble.weights, strict=True):
            task.record("ensemble", turn=turn, client=client.key, weight=weight)
        return ensemble.teacher

    def move(pool: PoolData, teacher: Teacher, number: int) -> PoolData:
        rng = generator(settings.seed, "co-boosting", number)
        moved = [
            diversify(teacher, images, task.model.spec, config.perturbation / 255, rng)
            for images in pool.images.split(chunk)
        ]
        return replace(pool, images=torch.cat(moved))

    return generate_and_distil(task, objective(config.disagreement), Boost(learn, move))


def objective(weight: float) -> Objective:
    """Return Co-Boosting's loss of the generator, with ``weight`` on the adversarial term."""

    def loss(logits: Tensor, targets: Tensor, student_logits: Tensor | None) -> Tensor:
        hard = difficulty(logits, targets) * cross_entropy(logits, targets)
        if student_logits is None or weight == 0:
            return hard
        return hard - weight * soft_label_loss(student_logits, logits, TEMPERATURE)

    return loss


def difficulty(logits: Tensor, targets: Tensor) -> Tensor:
    """``1 - p(label)`` under the ensemble, ``[B, C], [B, C] -> [B]``; a weight: no gradient."""
    return 1 - (targets * logits.detach().softmax(-1)).sum(-1)


def diversify(
    teacher: Teacher, images: Tensor, spec: InputSpec, size: float, rng: torch.Generator
) -> Tensor:
    """Move images towards a random mixture of the ensemble's outputs.

    Parameters
    ----------
    teacher : Teacher
        The ensemble A_w.
    images : Tensor
        Model input ``[B, C, H, W]``; not changed.
    spec : InputSpec
        Its normalisation and valid range.
    size : float
        How far each pixel moves, for pixels in [0, 1].
    rng : torch.Generator
        On the CPU.

    Returns
    -------
    Tensor
        ``[B, C, H, W]``, within the valid pixel range.
    """
    drawn = torch.rand(len(images), teacher.models[0].num_classes, generator=rng)
    direction = (2 * drawn - 1).to(images)
    images = images.detach().requires_grad_()
    (grad,) = torch.autograd.grad((direction * ensemble_logits(teacher, images)).sum(), images)
    low, high = spec.pixel_range(grad)
    # high - low is what the whole range [0, 1] comes to in model input.
    return (images.detach() + size * (high - low) * grad.sign()).clamp(low, high)


@dataclass(frozen=True)
class WeightedEnsemble:
    """A teacher whose clients have learned weights on top of its own."""

    base: Teacher
    weights: Tensor
    """``[K]``, each in [0, 1]."""

    @classmethod
    def uniform(cls, base: Teacher) -> "WeightedEnsemble":
        """All clients alike: the base itself, which normalises its weights."""
        clients = len(base.models)
        return cls(base, torch.full((clients,), 1 / clients).to(base.class_weights))

    @property
    def teacher(self) -> Teacher:
        """The weighted teacher; the base isn't changed."""
        weights = self.weights.unsqueeze(1) * self.base.class_weights
        # A class that only weightless clients know is answered as the base does.
        nobody = weights.sum(0, keepdim=True) <= 0
        weights = torch.where(nobody, self.base.class_weights, weights)
        return replace(self.base, class_weights=weights)

    def step(self, images: Tensor, targets: Tensor, size: float) -> "WeightedEnsemble":
        """Take one step of the weights down the cross-entropy on a batch.

        Parameters
        ----------
        images : Tensor
            Model input ``[B, C, H, W]``.
        targets : Tensor
            Class probabilities ``[B, classes]``.
        size : float
            How far each weight moves (mu), before it is clipped to [0, 1].
        """
        with torch.no_grad():
            logits = torch.stack([model(images).logits for model in self.base.models])
        trial = replace(self, weights=self.weights.detach().requires_grad_())
        loss = cross_entropy(trial.teacher.combine_logits(logits), targets).mean()
        (grad,) = torch.autograd.grad(loss, trial.weights)
        return replace(self, weights=(self.weights - size * grad.sign()).clamp(0, 1))
