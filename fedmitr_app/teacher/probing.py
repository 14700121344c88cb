"""Read each client's class prior off its weights, and combine the clients by it (choice).

A model trained on a skewed shard answers generic images with the classes it has seen. Its
mean softmax over them is a blunt estimate: a class it has never seen still gets the floor
that label smoothing and doubt leave everywhere. What tells a known class from an unknown one
is whether *any* image makes the model sure of it, so that high probabilities must count for
more: ``q = mean(p^8)^(1/8)``, normalised, a mean close to the maximum.

The estimate q serves twice. A client's weight for a class is ``sqrt(n) q^(3/4)``: milder than
``n q``, so that a class is shared among those that know it. And a client's logits carry its
own prior, which says nothing about an image: part of it is taken away first, ``z - 0.4 log q``
(logit adjustment: Menon et al., ICLR 2021), q no smaller than 0.01.

The four numbers were chosen on the 5000 digits' training images (4/5 to train, 1/5 to
measure; 5 clients, Dirichlet 0.1, nine partitions): the ensemble reached 0.815 on average,
0.789 with ``n q^(3/4)`` and no adjustment, 0.78 with label-aware weights. On CIFAR-10 (DeiT-Tiny,
96 px, one partition, 500 held-out training images), where nothing was chosen: 0.46, 0.41, 0.42.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedmitr_app.models import PatchViT
from fedmitr_app.utils.memory import Halving

POWER = 8
SHARING, SIZE_POWER = 0.75, 0.5
ADJUSTMENT, SMALLEST_PRIOR = 0.4, 0.01


@torch.no_grad()
def probe(
    models: Sequence[PatchViT],
    images: Tensor,
    batch_size: int = 256,
    on_batch: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """Return each model's logits of ``images`` ``[n, C, H, W]``: ``[K, n, classes]``.

    ``on_batch`` gets how many more images a model has read.
    """
    rows, halving = [], Halving("probing")
    for model in models:
        parts = []
        for part in images.split(batch_size):

            def answer(rows: slice, model: PatchViT = model, part: Tensor = part) -> Tensor:
                return model(part[rows]).logits

            parts += halving.over(len(part), answer)
            on_batch(len(part))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def priors_of(logits: Tensor) -> Tensor:
    """Estimate each model's class prior from its logits ``[K, n, classes]``.

    Returns
    -------
    Tensor
        ``[K, classes]``, each row summing to 1: ``mean(p^8)^(1/8)``, normalised.
    """
    # In logarithms: the eighth power of a small probability leaves float32.
    norm = (POWER * logits.log_softmax(-1)).logsumexp(1) / POWER
    return norm.softmax(-1)


def prior_weights(priors: Tensor, sizes: Tensor) -> Tensor:
    """Weigh clients by priors ``[K, classes]`` and numbers of examples ``[K, 1]``."""
    return sizes**SIZE_POWER * priors**SHARING


def prior_shift(priors: Tensor) -> Tensor:
    """Return what to take away from each client's logits, ``[K, classes]``."""
    return ADJUSTMENT * priors.clamp_min(SMALLEST_PRIOR).log()
