"""What the theory claims, and whether it holds in one run, in plain sentences.

Whether it holds can't be told where the difference's 95 % interval holds 0: see
:mod:`fedmitr_app.diagnostics.error_bars`.

The paper's abstract and summaries claim that sparse inversion steadies the inversion's gradient,
that relabelling tokens steadies the student's, and that the student generalises more tightly.
Which figure stands for which claim is a choice. Where a claim could come true by scale alone
(fewer pixels that move, a smaller loss), the same is asked again relative to the mean.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from fedmitr_app.diagnostics.error_bars import Error, alone, of_largest, paired, together
from fedmitr_app.diagnostics.gap import Gap
from fedmitr_app.diagnostics.measurements import Diagnosis


class Verdict(NamedTuple):
    """One claim, judged."""

    sentence: str
    holds: bool | None
    """None: it can't be told."""
    difference: float
    """The figure that is claimed to be lower, less the other."""
    half_width: float
    """Of the difference's 95 % interval; NaN if it isn't known."""


class Claim(NamedTuple):
    """That one figure is below another."""

    words: str
    ours: float
    theirs: float
    error: Error
    """Of their difference."""


_VERDICTS = {True: "holds here", False: "does not hold here", None: "can't be told here"}


def verdicts(diagnosis: Diagnosis) -> list[Verdict]:
    """Judge every claim that there are figures for."""
    return [judge(claim) for claim in claims(diagnosis)]


def judge(claim: Claim) -> Verdict:
    """Say whether a claim holds, with both figures and the error of their difference."""
    difference, half = claim.ours - claim.theirs, claim.error.half_width
    # A comparison with NaN is false: nothing is told by what isn't known.
    holds = difference < 0 if abs(difference) > half else None
    ours, theirs = f"{claim.ours:.3g}", f"{claim.theirs:.3g}"
    if ours == theirs and claim.ours != claim.theirs:
        ours, theirs = f"{claim.ours:.6g}", f"{claim.theirs:.6g}"
    error = "its error isn't known" if math.isnan(half) else f"± {half:.2g}"
    told = f"{ours} against {theirs} (difference {difference:+.2g}, {error})"
    sentence = f"{claim.words}: {told}, {_VERDICTS[holds]}."
    return Verdict(sentence, holds, difference, half)


def claims(diagnosis: Diagnosis) -> Iterator[Claim]:
    """Return what can be claimed from the figures that there are."""
    yield from _of_inversion(diagnosis)
    yield from _of_relabelling(diagnosis)
    yield from _of_students(diagnosis)


def _of_inversion(diagnosis: Diagnosis) -> Iterator[Claim]:
    if diagnosis.gradients is None:
        return
    ours, theirs = diagnosis.gradients["sparse"], diagnosis.gradients["dense"]
    for words, name in (
        ("gradient per image is smaller than dense's (mean norm)", "norm"),
        ("gradient norm varies less from image to image than dense's (variance)", "norm_variance"),
        (
            "gradient norm varies less from image to image than dense's, relative to its size "
            "(standard deviation over mean)",
            "norm_spread",
        ),
        ("gradient varies less over views of an image than dense's (variance)", "view_variance"),
        (
            "gradient varies less over views of an image than dense's, relative to its size "
            "(variance over squared norm of the mean)",
            "view_spread",
        ),
    ):
        error = paired(ours.left_out[name], theirs.left_out[name])
        figures = getattr(ours, name), getattr(theirs, name)
        yield Claim(f"Sparse inversion's {words}", *figures, error)


def _of_relabelling(diagnosis: Diagnosis) -> Iterator[Claim]:
    ours = diagnosis.variance["relabel"]
    for name, than in (
        ("hard", "with the pseudo-label on every token"),
        ("none", "without a token term"),
    ):
        theirs = diagnosis.variance[name]
        words = f"With relabelling the student's gradient varies less over batches than {than}"
        for figure, added in (
            ("total", " (variance)"),
            ("relative", ", relative to its size (variance over squared norm of the mean)"),
        ):
            error = paired(ours.left_out[figure], theirs.left_out[figure])
            yield Claim(words + added, getattr(ours, figure), getattr(theirs, figure), error)


def _of_students(diagnosis: Diagnosis) -> Iterator[Claim]:
    if "dense" not in diagnosis.students:
        return
    ours, theirs = diagnosis.students["run"], diagnosis.students["dense"]
    who = "The run's student has a {} than the student of dense inversion ({})"
    yield Claim(
        who.format("less steep loss", "largest input gradient over its pool"),
        ours.lipschitz,
        theirs.lipschitz,
        together(of_largest(ours.largest), of_largest(theirs.largest)),
    )
    yield Claim(
        who.format("less curved loss", "size of the Hessian's top eigenvalue"),
        abs(ours.curvature.value),
        abs(theirs.curvature.value),
        together(alone(ours.curvature.left_out), alone(theirs.curvature.left_out)),
    )
    if ours.gap is not None and theirs.gap is not None:
        yield Claim(
            who.format("smaller gap of loss", "real images minus its pool, nats"),
            ours.gap.loss,
            theirs.gap.loss,
            _of_gaps(ours.gap, theirs.gap, "loss"),
        )
        yield Claim(
            who.format("smaller gap of accuracy", "its pool minus real images, share"),
            ours.gap.accuracy,
            theirs.gap.accuracy,
            _of_gaps(ours.gap, theirs.gap, "accuracy"),
        )


def _of_gaps(ours: Gap, theirs: Gap, what: str) -> Error:
    """Return the error of two gaps' difference: pools of their own, the same test images."""
    pool, test = f"pool_{what}", f"test_{what}"
    pools = [alone(one.left_out[pool]) for one in (ours, theirs)]
    return together(*pools, paired(ours.left_out[test], theirs.left_out[test]))
