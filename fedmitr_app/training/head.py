"""A client's classifier head, fitted before everything else is trained.

A head that starts at random pulls the features of a pre-trained backbone out of shape before it
has learnt anything (Kumar et al., "Fine-Tuning can Distort Pretrained Features", ICLR 2022), so
that it may be fitted before, on the frozen θ₀'s features.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fedmitr_app.models.patch_vit import PatchViT
from fedmitr_app.training.losses import Loss

# Weak (choice): what it costs a row of the head beside the mean loss over the classes.
DECAY = 1e-3
ROUNDS, ITERATIONS = 20, 10
SMALLEST_GAIN = 1e-4
"""Of the loss, in a round: less isn't worth another."""


@torch.no_grad()
def shard_features(
    model: PatchViT, batches: Iterable[Tensor], *, in_time: Callable[[], bool] = lambda: True
) -> Tensor:
    """Return the class-token features of uint8 images, ``[n, D]``.

    Parameters
    ----------
    in_time : Callable[[], bool]
        Asked after each batch; once it says no, the features so far are returned.
    """
    parts = []
    for batch in batches:
        parts.append(model(model.spec.normalise(batch)).features)
        if not in_time():
            break
    return torch.cat(parts)


def fit_head(
    head: nn.Linear,
    features: Tensor,
    labels: Tensor,
    loss: Loss,
    *,
    in_time: Callable[[], bool] = lambda: True,
) -> None:
    """Fit a head in place by L-BFGS, from zero, with a weak L2 penalty.

    Rows of classes that ``loss`` doesn't ask for stay zero.

    Parameters
    ----------
    head : nn.Linear
        From D features to C classes.
    features, labels : Tensor
        ``[n, D]`` and ``[n]``.
    in_time : Callable[[], bool]
        Asked after every ``ITERATIONS`` iterations; once it says no, the fit ends.
    """
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    optimiser = torch.optim.LBFGS(
        head.parameters(), max_iter=ITERATIONS, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimiser.zero_grad()
        value = loss(head(features), labels) + DECAY / 2 * head.weight.square().sum(1).mean()
        value.backward()
        return value

    last = float("inf")
    for _ in range(ROUNDS):
        value = optimiser.step(objective).item()  # before the round
        if not in_time() or last - value < SMALLEST_GAIN * value:
            break
        last = value
    optimiser.zero_grad()
