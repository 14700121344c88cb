"""The learning-rate schedule that clients and server share."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimiser: Optimizer, steps: int, warmup: float) -> LambdaLR:
    """Linear warm-up over a share ``warmup`` of ``steps``, then cosine down to 0.

    The first step already has a positive rate, so that a single step trains.
    """
    rising = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        progress = (step - rising) / max(steps - rising, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    return LambdaLR(optimiser, factor)


def resume_schedule(schedule: LambdaLR, steps: int) -> None:
    """Put a schedule, and its optimiser's rates, where they are after ``steps`` steps."""
    schedule.last_epoch = steps
    groups = zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    )
    for group, rate, factor in groups:
        group["lr"] = rate * factor(steps)
