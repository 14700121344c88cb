"""How steep and how curved the student's loss is.

The paper's summaries claim stabler gradients and a tighter generalisation bound; bounds of
that kind rest on a Lipschitz and a smoothness constant. Both are estimated here from below
(choice): the largest input gradient over given images, and the largest eigenvalue of the
Hessian with respect to the parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedmitr_app.diagnostics.error_bars import PARTS, without_each
from fedmitr_app.inversion.losses import cross_entropy
from fedmitr_app.models import PatchViT

TOLERANCE = 1e-3
MOST_ITERATIONS = 100


def input_gradients(
    model: PatchViT, images: Tensor, targets: Tensor, *, batch_size: int = 256
) -> Tensor:
    """Return the norm of the loss's gradient with respect to each image.

    Parameters
    ----------
    images : Tensor
        Model input ``[n, C, H, W]``.
    targets : Tensor
        Class probabilities ``[n, classes]``; the loss is their cross-entropy.

    Returns
    -------
    Tensor
        ``[n]``: ``||d CE(model(x_i), y_i) / d x_i||``. Their largest is a lower bound of the
        loss's Lipschitz constant.
    """
    norms = []
    for part, labels in zip(images.split(batch_size), targets.split(batch_size), strict=True):
        part = part.detach().requires_grad_()
        # An image's loss doesn't depend on the others': the sum's gradient holds each one's.
        loss = cross_entropy(model(part).logits, labels).sum()
        (grad,) = torch.autograd.grad(loss, part)
        norms.append(grad.flatten(1).norm(dim=1))
    return torch.cat(norms)


def largest_of_parts(norms: Tensor, rng: torch.Generator) -> tuple[float, ...]:
    """Return the largest of each of ``PARTS`` parts of norms ``[n]``, dealt by chance."""
    order = torch.randperm(len(norms), generator=rng).to(norms.device)
    parts = norms[order].tensor_split(min(PARTS, len(norms)))
    return tuple(float(part.max()) for part in parts)


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
    left_out : tuple[float, ...]
        It without each part of the images in turn, to first order: the direction stays.
    """

    value: float
    iterations: int
    converged: bool
    left_out: tuple[float, ...] = ()


def top_eigenvalue(
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    rng: torch.Generator,
    *,
    tolerance: float = TOLERANCE,
    most_iterations: int = MOST_ITERATIONS,
) -> tuple[Eigenvalue, Tensor]:
    """Find the top eigenvalue of a loss's Hessian, and its vector ``[P]``, by power iteration.

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
    # MethodResult attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        grads = torch.autograd.grad(loss(), parameters, create_graph=True)
        slope = torch.cat([grad.flatten() for grad in grads])
        vector = torch.randn(len(slope), generator=rng, dtype=slope.dtype).to(slope.device)
        vector /= vector.norm()
        before = float("inf")
        for iteration in range(1, most_iterations + 1):
            product = _hessian_product(slope, parameters, vector)
            value = float(vector @ product)
            length = product.norm()
            done = abs(value - before) <= tolerance * abs(value) or bool(length == 0)
            if done or iteration == most_iterations:
                break
            vector, before = product / length, value
    return Eigenvalue(value, iteration, done), vector


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

    The loss is a mean over images, and to first order its eigenvalue is a mean too: of v·H_i v,
    with v the top eigenvector and H_i the Hessian of image i alone.
    """

    def loss(some: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(model(some).logits, labels).mean()

    parameters = list(model.parameters())
    trained = [parameter.requires_grad for parameter in parameters]
    try:
        model.requires_grad_(True)
        found, vector = top_eigenvalue(
            partial(loss, images, targets),
            parameters,
            rng,
            tolerance=tolerance,
            most_iterations=most_iterations,
        )
        parts, count = [], min(PARTS, len(images))
        for some, labels in zip(
            images.tensor_split(count), targets.tensor_split(count), strict=True
        ):
            parts.append(_curvature_along(partial(loss, some, labels), parameters, vector))
        return replace(found, left_out=without_each(torch.tensor(parts)))
    finally:
        for parameter, before in zip(parameters, trained, strict=True):
            parameter.requires_grad_(before)


def _curvature_along(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], vector: Tensor
) -> float:
    """Return ``v·Hv`` of a loss's Hessian, for a flat vector ``[P]``."""
    with sdpa_kernel(SDPBackend.MATH):
        grads = torch.autograd.grad(loss(), parameters, create_graph=True)
        slope = torch.cat([grad.flatten() for grad in grads])
        return float(vector @ _hessian_product(slope, parameters, vector))


def _hessian_product(slope: Tensor, parameters: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Differentiate ``slope @ vector``: the Hessian times the vector, flat ``[P]``."""
    parts = torch.autograd.grad(
        slope, parameters, vector, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.flatten() for part in parts])
