"""The inversion's gradient, dense against sparse, from the same starts and draws.

The paper's summaries claim that sparse inversion makes the gradient less unstable: here that is
the gradient with respect to an image's pixels, its norm, how it varies from image to image, and
how it varies over views of one image (choice: they name no estimator).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedmitr_app.config import InversionConfig
from fedmitr_app.diagnostics.error_bars import without_each
from fedmitr_app.inversion import Inverted, Schedule, invert_batch
from fedmitr_app.inversion.invert import pixel_gradient
from fedmitr_app.inversion.objective import Objective
from fedmitr_app.inversion.pool_shards import Assignment, assign
from fedmitr_app.inversion.state import InversionState
from fedmitr_app.inversion.views import draw_view
from fedmitr_app.teacher import Teacher
from fedmitr_app.utils.randomness import generator

VIEWS = 8
_TINY = 1e-30


@dataclass(frozen=True)
class GradientFigures:
    """One inversion's gradient with respect to the pixels that still move.

    Attributes
    ----------
    norm : float
        L2 norm of an image's gradient; mean over images and iterations. Like the next two, of
        the iterations since the first stop: before it dense and sparse are the same.
    norm_variance : float
        Variance of that norm over the batch's images; mean over iterations.
    norm_spread : float
        Its standard deviation divided by its mean, per iteration; mean over iterations. Free
        of scale: fewer moving pixels alone make a norm smaller.
    view_variance : float
        At the last iterate: the gradient's variance over rolls and flips of one image, summed
        over its pixels; mean over images.
    view_spread : float
        The same divided by the squared norm of the mean over views: noise to signal.
    norms, variances : tuple[float, ...]
        ``norm`` and ``norm_variance`` of each iteration, from the first.
    left_out : Mapping[str, tuple[float, ...]]
        The first five, by name, without each of the images in turn.
    """

    norm: float
    norm_variance: float
    norm_spread: float
    view_variance: float
    view_spread: float
    norms: tuple[float, ...]
    variances: tuple[float, ...]
    left_out: Mapping[str, tuple[float, ...]]


def compare_gradients(
    teacher: Teacher,
    config: InversionConfig,
    *,
    images: int,
    seed: int,
    device: torch.device,
    views: int = VIEWS,
) -> Mapping[str, GradientFigures] | None:
    """Invert one batch twice, ``dense`` and ``sparse``, and measure both.

    Starts, targets, clients per image and the views' draws are the same; all but the schedule is
    as ``config`` says. An ``automatic`` run is compared as such, under the name ``sparse``.

    Parameters
    ----------
    images : int
        In the batch; at least 2.
    seed : int
        Run seed: the starts are drawn as the run draws its first batch's, but ``images`` of them.

    Returns
    -------
    Mapping[str, GradientFigures] or None
        None if ``config.iterations`` is 0: nothing is inverted.
    """
    if not config.iterations:
        return None
    rng = generator(seed, "inversion", 0, 0)
    batch = assign(teacher, config, images, rng, device)
    drawn = rng.get_state()
    stopping = "automatic" if config.schedule == "automatic" else "sparse"
    stops = Schedule.build(replace(config, schedule=stopping)).stops
    # A stop past the end stops nothing: then all iterations count, and both are the same.
    first = min((at for at in stops if at < config.iterations), default=0)
    figures = {}
    for name, schedule in (("dense", "dense"), ("sparse", stopping)):
        norms: list[Tensor] = []

        def listen(grad: Tensor, norms: list[Tensor] = norms) -> None:
            norms.append(grad.flatten(1).norm(dim=1))

        rng.set_state(drawn)
        plan = replace(config, schedule=schedule)
        inverted = invert_batch(
            teacher, *batch[:2], plan, rng, members=batch.members, on_gradient=listen
        )
        view_rng = generator(seed, "diagnosis", "views")
        figures[name] = _figures(
            torch.stack(norms), first, over_views(teacher, inverted, batch, plan, view_rng, views)
        )
    return figures


def over_views(
    teacher: Teacher,
    inverted: Inverted,
    batch: Assignment,
    config: InversionConfig,
    rng: torch.Generator,
    views: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradient's variance over views of each finished image, and relative to its mean.

    Returns
    -------
    tuple[Tensor, Tensor]
        ``[B]`` each, whose means are ``view_variance`` and ``view_spread`` of
        :class:`GradientFigures`.
    """
    objective = Objective(teacher, batch.targets, config, batch.members)
    model, alive = teacher.models[0], inverted.keep_idx
    state = InversionState(inverted.images, config, model.spec, model.patch_size)
    state.stop(alive)  # as none is stopped yet, a patch's number is its position among them
    grads = []
    for _ in range(views):
        view = draw_view(len(alive), model.spec, model.num_patches, config, rng)
        grads.append(pixel_gradient(objective, state, [view]).grad)
    seen = torch.stack(grads).flatten(2)  # [V, B, n*C*p*p]
    variance = seen.var(0).sum(1)
    signal = seen.mean(0).square().sum(1)
    return variance, variance / signal.clamp_min(_TINY)


def _figures(norms: Tensor, first: int, views: tuple[Tensor, Tensor]) -> GradientFigures:
    """Sum up norms ``[iterations, B]`` from iteration ``first`` on, and views ``[B]``."""
    count = norms.shape[1]
    others = ~torch.eye(count, dtype=torch.bool, device=norms.device)
    rest = [_of_norms(norms[first:, kept]) for kept in others]
    left_out = {name: tuple(each[name] for each in rest) for name in rest[0]}
    left_out |= {
        name: without_each(each)
        for name, each in zip(("view_variance", "view_spread"), views, strict=True)
    }
    return GradientFigures(
        **_of_norms(norms[first:]),
        view_variance=float(views[0].mean()),
        view_spread=float(views[1].mean()),
        norms=tuple(norms.mean(1).tolist()),
        variances=tuple(norms.var(1).tolist()),
        left_out=left_out,
    )


def _of_norms(norms: Tensor) -> dict[str, float]:
    """Sum up norms ``[iterations, B]``; of one image there is no variance: NaN."""
    means = norms.mean(1)
    variances = norms.var(1) if norms.shape[1] > 1 else torch.full_like(means, math.nan)
    return {
        "norm": float(means.mean()),
        "norm_variance": float(variances.mean()),
        "norm_spread": float((variances.sqrt() / means.clamp_min(_TINY)).mean()),
    }
