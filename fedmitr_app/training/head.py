"""A client's classifier head where it is not just trained along with everything else.

Fitted first: a head that starts at random pulls the features of a pre-trained backbone out of
shape before it has learnt anything (Kumar et al., "Fine-Tuning can Distort Pretrained Features",
ICLR 2022), so that it may be fitted before, on the frozen θ₀'s features.

Class means: a head that is trained tells a client's classes from its other classes, which differ
from client to client. The nearest-class-mean head (Mensink et al., "Distance-Based Image
Classification", PAMI 2013) holds of each class what the class's own images say, so that averaging
loses nothing of it, and what is trained are the features alone, towards their means (as in
prototypical networks: Snell et al., NeurIPS 2017; for one upload: choice).
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
ROUNDING = 0.02
"""By which shares that are read off a head may miss 1: uploads may be in half precision."""
SCALE = 0.3
"""Of class means' logits (choice): a pre-trained ViT's features are about sqrt(D) long, so that
logits of nearest and other classes lie a few units apart."""


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


@torch.no_grad()
def set_class_means(
    head: nn.Linear, features: Tensor, labels: Tensor, *, by_share: bool = False
) -> None:
    """Make a head in place that answers by the nearest class mean.

    Row and bias of class c are ``SCALE / sqrt(D)`` times ``mean_c`` and ``-|mean_c|^2 / 2``: up to
    what all classes have in common, minus half the squared distance to the mean. Classes without
    an image get zeros.

    Parameters
    ----------
    features, labels : Tensor
        ``[n, D]`` and ``[n]``.
    by_share : bool
        Multiply each class's by its share of the images: both then are means over the images of
        what one image gives, so that the clients' averages by numbers of examples are those of
        all images together (but for the biases' squares of each client's own means).
    """
    classes, size = head.weight.shape
    sums = torch.zeros(classes, size, dtype=torch.float64, device=features.device)
    sums.index_add_(0, labels, features.double())
    counts = torch.bincount(labels, minlength=classes).double().clamp_min(1).unsqueeze(1)
    means = sums / counts
    scale = SCALE / size**0.5 * (counts / len(labels) if by_share else torch.ones_like(counts))
    head.weight.copy_(scale * means)
    head.bias.copy_(-scale.squeeze(1) / 2 * means.square().sum(1))


def class_shares(weight: Tensor, bias: Tensor) -> Tensor | None:
    """Read each class's share of a client's images off its head of class means, ``[C]``.

    None if that head is no such one, made by :func:`set_class_means` with ``by_share``: then the
    shares would not sum to 1.

    Parameters
    ----------
    weight, bias : Tensor
        ``[C, D]`` and ``[C]``.
    """
    rows, biases = weight.double(), bias.double()
    least = torch.finfo(torch.float64).tiny
    scaled = rows.square().sum(1) / (-2 * biases).clamp_min(least)
    shares = torch.where(biases < 0, scaled, 0.0) * rows.shape[1] ** 0.5 / SCALE
    whole = abs(float(shares.sum()) - 1) < ROUNDING and bool((rows[biases >= 0] == 0).all())
    return shares if whole else None


def class_means(weight: Tensor, bias: Tensor) -> Tensor | None:
    """Read each class's mean feature off a client's head of class means, ``[C, D]``.

    Zeros for a class that it doesn't hold; None if the head is no such one, as for
    :func:`class_shares`.

    Parameters
    ----------
    weight, bias : Tensor
        ``[C, D]`` and ``[C]``.
    """
    shares = class_shares(weight, bias)
    if shares is None:
        return None
    scale = (SCALE / weight.shape[1] ** 0.5 * shares).unsqueeze(1)
    return torch.where(scale > 0, weight.double() / scale, 0.0).to(weight.dtype)
