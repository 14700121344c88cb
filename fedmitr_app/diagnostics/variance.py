"""How much the student's gradient varies from batch to batch, by what its tokens are taught.

The paper's summaries claim that relabelling low-density tokens lowers the gradient's variance;
here that is the variance of the student's parameter gradient over batches, beside teaching those
tokens the pseudo-label too, or no token anything (choice: they name no estimator).
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedmitr_app.config import DistillationConfig
from fedmitr_app.distillation import Distiller
from fedmitr_app.distillation.batches import draw_batch
from fedmitr_app.inversion import PoolData
from fedmitr_app.models import PatchViT
from fedmitr_app.randomness import generator
from fedmitr_app.teacher import Teacher

LABELS = ("hard", "relabel", "none")
_TINY = 1e-30


@dataclass(frozen=True)
class Variance:
    """A gradient's variance over batches.

    Attributes
    ----------
    total : float
        Sum over the parameters of each coordinate's variance.
    relative : float
        The same divided by the squared norm of the mean gradient: noise to signal, free of
        the loss's scale.
    """

    total: float
    relative: float


def gradient_variance(gradients: Iterable[Tensor]) -> Variance:
    """Sum up flat gradients ``[P]``, two or more, with one of them in memory at a time.

    Welford's method (Technometrics, 1962): no difference of two large sums.
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for gradient in gradients:
        count += 1
        away = gradient - mean
        mean = mean + away / count
        squares = squares + away * (gradient - mean)
    if count < 2:
        raise ValueError(f"a variance needs at least 2 gradients, not {count}")
    total = float(squares.sum()) / (count - 1)
    return Variance(total, total / max(float(mean.square().sum()), _TINY))


def variance_by_labels(
    student: PatchViT,
    teacher: Teacher,
    pool: PoolData,
    config: DistillationConfig,
    *,
    batches: int,
    seed: int,
) -> dict[str, Variance]:
    """Measure the gradient under each of ``LABELS``, on the same batches of the same student.

    ``hard``: the image's pseudo-label on every token. ``relabel``: on those that survived the
    inversion, the ensemble's answer on the others, as ``config.relabel`` says. ``none``: no
    token term. The weight of the token term is the run's own; where that has none, ``relabel``
    and its weight are taken from the defaults. Token logits come from the shared head: an
    auxiliary one is thrown away after training. What ``config.train`` freezes doesn't count.

    Parameters
    ----------
    student : PatchViT
        Not changed.
    batches : int
        Each of ``config.batch_size`` images; at least 2.
    seed : int
        Run seed.
    """
    every = replace(pool, mask=torch.ones_like(pool.mask))
    ours, usual = config.relabel, DistillationConfig()
    asked = {
        # With every token surviving, nothing is left to relabel: any reading will do.
        "hard": (every, "image"),
        "relabel": (pool, usual.relabel if ours == "none" else ours),
        "none": (pool, "none"),
    }
    found = {}
    for name in LABELS:
        data, relabel = asked[name]
        plan = replace(
            config, relabel=relabel, beta=config.beta or usual.beta, token_head="shared"
        )
        rng = generator(seed, "diagnosis", "batches")
        distiller = Distiller(copy.deepcopy(student).eval(), teacher, plan, rng)
        found[name] = gradient_variance(
            _gradient(distiller, data, rng) for _ in range(batches)
        )
    return found


def _gradient(distiller: Distiller, pool: PoolData, rng: torch.Generator) -> Tensor:
    """Return one batch's gradient, flat ``[P]``, unclipped."""
    loss = distiller.loss(draw_batch(pool, distiller.config, rng)).mean()
    grads = torch.autograd.grad(
        loss, distiller.parameters, allow_unused=True, materialize_grads=True
    )
    return torch.cat([grad.flatten() for grad in grads])
