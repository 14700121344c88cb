"""How much the student's gradient varies from batch to batch, by what its tokens are taught.

The paper's summaries claim that relabelling low-density tokens lowers the gradient's variance;
here that is the variance of the student's parameter gradient over batches, beside teaching those
tokens the pseudo-label too, or no token anything (choice: they name no estimator).
"""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedmitr_app.config import DistillationConfig
from fedmitr_app.diagnostics.error_bars import PARTS
from fedmitr_app.distillation import Distiller
from fedmitr_app.distillation.batches import draw_batch
from fedmitr_app.inversion import PoolData
from fedmitr_app.models import PatchViT
from fedmitr_app.teacher import Teacher
from fedmitr_app.utils.randomness import generator

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
    left_out : Mapping[str, tuple[float, ...]]
        Both, by name, without each part of the batches in turn.
    """

    total: float
    relative: float
    left_out: Mapping[str, tuple[float, ...]]


def gradient_variance(gradients: Iterable[Tensor]) -> Variance:
    """Sum up flat gradients ``[P]``, two or more, dealt to ``PARTS`` parts in turn.

    Of each part its mean alone is kept in memory, and how far its gradients lie from that:
    Welford's method (Technometrics, 1962), no difference of two large sums.
    """
    counts, means, within = [0] * PARTS, [torch.zeros(())] * PARTS, [0.0] * PARTS
    for number, gradient in enumerate(gradients):
        part = number % PARTS
        counts[part] += 1
        away = gradient - means[part]
        means[part] = means[part] + away / counts[part]
        within[part] += float((away * (gradient - means[part])).sum())
    parts = sum(count > 0 for count in counts)
    size, spread = torch.tensor(counts[:parts]).double(), torch.tensor(within[:parts]).double()
    if size.sum() < 2:
        raise ValueError(f"a variance needs at least 2 gradients, not {sum(counts)}")
    filled = zip(counts[:parts], means[:parts], strict=True)
    whole = sum((count * mean for count, mean in filled), torch.zeros(())) / sum(counts)
    ways = [mean - whole for mean in means[:parts]]
    products = torch.tensor([[float(one @ other) for other in ways] for one in ways]).double()
    along = torch.tensor([float(whole @ one) for one in ways]).double()

    def of(kept: Tensor) -> tuple[float, float]:
        """Return both figures of some of the parts, ``[parts]`` bool."""
        weights = size * kept
        count = float(weights.sum())
        if count < 2:
            return math.nan, math.nan
        # About the mean of all: that of these parts lies off it by the shares' mixture.
        shares = weights / count
        off = float(shares @ products @ shares)
        squares = float((spread * kept).sum() + weights @ products.diagonal()) - count * off
        total = squares / (count - 1)
        signal = float(whole @ whole) + 2 * float(shares @ along) + off
        return total, total / max(signal, _TINY)

    rest = [of(kept) for kept in ~torch.eye(parts, dtype=torch.bool)]
    names = ("total", "relative")
    left_out = dict(zip(names, map(tuple, zip(*rest, strict=True)), strict=True))
    return Variance(*of(torch.ones(parts, dtype=torch.bool)), left_out)


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
        plan = replace(config, relabel=relabel, beta=config.beta or usual.beta)
        rng = generator(seed, "diagnosis", "batches")
        distiller = Distiller(copy.deepcopy(student).eval(), teacher, plan, rng)
        found[name] = gradient_variance(_gradient(distiller, data, rng) for _ in range(batches))
    return found


def _gradient(distiller: Distiller, pool: PoolData, rng: torch.Generator) -> Tensor:
    """Return one batch's gradient, flat ``[P]``, unclipped."""
    loss = distiller.loss(draw_batch(pool, distiller.config, rng)).mean()
    grads = torch.autograd.grad(
        loss, distiller.parameters, allow_unused=True, materialize_grads=True
    )
    return torch.cat([grad.flatten() for grad in grads])
