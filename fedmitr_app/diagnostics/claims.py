"""What the theory claims, and whether it holds in one run, in plain sentences.

The paper's abstract and summaries claim that sparse inversion steadies the inversion's gradient,
that relabelling tokens steadies the student's, and that the student generalises more tightly.
Which figure stands for which claim is a choice. Where a claim could come true by scale alone
(fewer pixels that move, a smaller loss), the same is asked again relative to the mean.
"""

from collections.abc import Iterator
from typing import NamedTuple

from fedmitr_app.diagnostics.figures import Diagnosis


class Verdict(NamedTuple):
    """One claim, judged."""

    sentence: str
    holds: bool


class Claim(NamedTuple):
    """That one figure is below another."""

    words: str
    ours: float
    theirs: float


def verdicts(diagnosis: Diagnosis) -> list[Verdict]:
    """Judge every claim that there are figures for; a tie doesn't hold."""
    return [judge(claim) for claim in claims(diagnosis)]


def judge(claim: Claim) -> Verdict:
    """Say whether a claim holds, with both figures."""
    holds = claim.ours < claim.theirs
    ours, theirs = f"{claim.ours:.3g}", f"{claim.theirs:.3g}"
    if ours == theirs and claim.ours != claim.theirs:
        ours, theirs = f"{claim.ours:.6g}", f"{claim.theirs:.6g}"
    verdict = "holds" if holds else "does not hold"
    return Verdict(f"{claim.words}: {ours} against {theirs}, {verdict} here.", holds)


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
        yield Claim(f"Sparse inversion's {words}", getattr(ours, name), getattr(theirs, name))


def _of_relabelling(diagnosis: Diagnosis) -> Iterator[Claim]:
    ours = diagnosis.variance["relabel"]
    for name, than in (
        ("hard", "with the pseudo-label on every token"),
        ("none", "without a token term"),
    ):
        theirs = diagnosis.variance[name]
        words = f"With relabelling the student's gradient varies less over batches than {than}"
        yield Claim(f"{words} (variance)", ours.total, theirs.total)
        yield Claim(
            f"{words}, relative to its size (variance over squared norm of the mean)",
            ours.relative,
            theirs.relative,
        )


def _of_students(diagnosis: Diagnosis) -> Iterator[Claim]:
    if "dense" not in diagnosis.students:
        return
    ours, theirs = diagnosis.students["run"], diagnosis.students["dense"]
    who = "The run's student has a {} than the student of dense inversion ({})"
    yield Claim(
        who.format("less steep loss", "largest input gradient over its pool"),
        ours.lipschitz,
        theirs.lipschitz,
    )
    yield Claim(
        who.format("less curved loss", "size of the Hessian's top eigenvalue"),
        abs(ours.curvature.value),
        abs(theirs.curvature.value),
    )
    if ours.gap is not None and theirs.gap is not None:
        yield Claim(
            who.format("smaller gap of loss", "real images minus its pool, nats"),
            ours.gap.loss,
            theirs.gap.loss,
        )
        yield Claim(
            who.format("smaller gap of accuracy", "its pool minus real images, share"),
            ours.gap.accuracy,
            theirs.gap.accuracy,
        )
