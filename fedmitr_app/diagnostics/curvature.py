"""How steep and how curved the student's loss is.

The paper's summaries claim stabler gradients and a tighter generalisation bound; bounds of
that kind rest on a Lipschitz and a smoothness constant. Both are estimated here from below
(choice): the largest input gradient over given images, and the largest eigenvalue of the
Hessian with respect to the parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedmitr_app.inversion.losses import cross_entropy
from fedmitr_app.models import PatchViT

TOLERANCE = 1e-3
MOST_ITERATIONS = 100


def lipschitz(
    model: PatchViT, images: Tensor, targets: Tensor, *, batch_size: int = 256
) -> float:
    """Return the largest norm of the loss's gradient with respect to an image.

    Parameters
    ----------
    images : Tensor
        Model input ``[n, C, H, W]``.
    targets : Tensor
        Class probabilities ``[n, classes]``; the loss is their cross-entropy.

    Returns
    -------
    float
        ``max_i ||d CE(model(x_i), y_i) / d x_i||``: a lower bound of the loss's Lipschitz
        constant.
    """
    largest = []
    for part, labels in zip(images.split(batch_size), targets.split(batch_size), strict=True):
        part = part.detach().requires_grad_()
        # An image's loss doesn't depend on the others': the sum's gradient holds each one's.
        loss = cross_entropy(model(part).logits, labels).sum()
        (grad,) = torch.autograd.grad(loss, part)
        largest.append(grad.flatten(1).norm(dim=1).max())
    return float(torch.stack(largest).max())


@dataclass(frozen=True)
class Eigenvalue:
    """What power iteration found.

    Attributes
    ----------
    value : float
        The Hessian's eigenvalue that is largest in size, with its sign.
    iterations : int
        Hessian-vector products taken.
    converged : bool
        Whether it changed by less than the tolerance before the limit.
    """

    value: float
    iterations: int
    converged: bool


def top_eigenvalue(
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    rng: torch.Generator,
    *,
    tolerance: float = TOLERANCE,
    most_iterations: int = MOST_ITERATIONS,
) -> Eigenvalue:
    """Find the top eigenvalue of a loss's Hessian by power iteration.

    Each step is one Hessian-vector product (Pearlmutter, 1994), so that the Hessian itself,
    parameters squared, is never formed. The largest in size is the smoothness constant at this
    point: how fast the gradient can change.

    Parameters
    ----------
    loss : Callable[[], Tensor]
        Returns the scalar loss, made from ``parameters``.
    parameters : Sequence[Tensor]
        What to differentiate; each must require a gradient.
    rng : torch.Generator
        On the CPU; draws the starting vector.
    tolerance : float
        Relative change of the eigenvalue between two steps at which to stop.
    most_iterations : int
        Where to stop in any case.
    """
    # Fused attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        grads = torch.autograd.grad(loss(), parameters, create_graph=True)
        slope = torch.cat([grad.flatten() for grad in grads])
        vector = torch.randn(len(slope), generator=rng, dtype=slope.dtype).to(slope.device)
        vector /= vector.norm()
        value, before = 0.0, float("inf")
        for iteration in range(1, most_iterations + 1):
            product = _hessian_product(slope, parameters, vector)
            value = float(vector @ product)
            length = product.norm()
            if abs(value - before) <= tolerance * abs(value) or length == 0:
                return Eigenvalue(value, iteration, True)
            vector, before = product / length, value
    return Eigenvalue(value, most_iterations, False)


def student_curvature(
    model: PatchViT,
    images: Tensor,
    targets: Tensor,
    rng: torch.Generator,
    *,
    tolerance: float = TOLERANCE,
    most_iterations: int = MOST_ITERATIONS,
) -> Eigenvalue:
    """Return the top eigenvalue of a student's mean cross-entropy, over all its parameters.

    All images ``[n, C, H, W]`` and class probabilities ``[n, classes]`` go through at once,
    with their graph kept: some dozens are enough. Leaves the model as it was.
    """
    parameters = list(model.parameters())
    trained = [parameter.requires_grad for parameter in parameters]
    try:
        model.requires_grad_(True)
        return top_eigenvalue(
            lambda: cross_entropy(model(images).logits, targets).mean(),
            parameters,
            rng,
            tolerance=tolerance,
            most_iterations=most_iterations,
        )
    finally:
        for parameter, before in zip(parameters, trained, strict=True):
            parameter.requires_grad_(before)


def _hessian_product(slope: Tensor, parameters: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Differentiate ``slope @ vector``: the Hessian times the vector, flat ``[P]``."""
    parts = torch.autograd.grad(
        slope, parameters, vector, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.flatten() for part in parts])
