"""The report's section on what the theory claims, for a run that was diagnosed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmitr_app.errors import RunFolderError
from fedmitr_app.report import html
from fedmitr_app.utils.files import reason_of, write_text
from fedmitr_app.utils.reading import read_text

MAX_PAGE_BYTES = 2**28
"""Its figures are in it."""
START, END = "<!-- diagnosis -->", "<!-- end of diagnosis -->"
_NOTE = (
    "Figures of this one run. After ± is half of a 95 % interval, from its own images and "
    "batches: another seed may differ by more. "
    "Slope and curvature are of the student's cross-entropy with the teacher's answers."
)
_LOOKS = {True: "", False: "warning", None: "note"}
"""By whether a claim holds; None: that can't be told."""
_INVERSION = {
    "norm": "norm of an image's gradient",
    "norm_variance": "its variance from image to image",
    "norm_spread": "its standard deviation over its mean",
    "view_variance": "the gradient's variance over views of an image",
    "view_spread": "the same over the squared norm of its mean",
}
_LABELS = {
    "hard": "the pseudo-label on every token",
    "relabel": "relabelled by the ensemble",
    "none": "no token term",
}
_GAP = {
    "pool_accuracy": "agreement with the teacher on its pool",
    "test_accuracy": "accuracy on real images",
    "pool_loss": "loss on its pool",
    "test_loss": "loss on real images",
}


def diagnosis_section(metrics: Mapping[str, Any]) -> str:
    """Return the section for ``metrics["diagnosis"]``; nothing when there is none."""
    found = metrics.get("diagnosis")
    if not found:
        return ""
    marked = [(claim["sentence"], claim["holds"]) for claim in found.get("claims") or ()]
    sentences = [html.paragraph(words, _LOOKS[holds]) for words, holds in marked]
    tables = [
        html.table(header, rows, numbers=range(1, len(header)), caption=f"Of the {header[0]}.")
        for header, rows in diagnosis_tables(found)
    ]
    section = html.section(
        "What the theory claims", *sentences, *tables, html.paragraph(_NOTE, "note")
    )
    return f"{START}\n{section}\n{END}"


def diagnosis_tables(found: Mapping[str, Any]) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Return each table's header and rows, as text, of a diagnosis as JSON holds it."""
    if gradients := found.get("gradients"):
        kinds = ["sparse", "dense"]
        rows = [
            [words, *(_shown(gradients[kind][name]) for kind in kinds)]
            for name, words in _INVERSION.items()
        ]
        yield ["gradient of the inversion", *kinds], rows
    if variance := found.get("variance"):
        rows = [
            [words, _shown(variance[name]["total"]), _shown(variance[name]["relative"])]
            for name, words in _LABELS.items()
        ]
        yield ["the student's gradient, over batches", "variance", "over its squared mean"], rows
    if students := found.get("students"):
        each = students.values()
        rows = [
            ["largest input gradient", *(_shown(one["lipschitz"]) for one in each)],
            ["top eigenvalue of the Hessian", *map(_eigenvalue, each)],
        ]
        if all(one.get("gap") for one in each):
            rows += [
                [words, *(_shown(one["gap"][name]) for one in each)] for name, words in _GAP.items()
            ]
        names = {"run": "the run's", "dense": "of dense inversion"}
        yield ["student", *(names.get(name, name) for name in students)], rows


def add_to_report(report: Path, metrics: Mapping[str, Any]) -> None:
    """Put the section into a finished page, in place of an earlier one.

    The page's other parts came from what only the run itself knew.

    Raises
    ------
    RunFolderError
        When the page can't be read or written.
    """
    try:
        page = read_text(report, MAX_PAGE_BYTES)
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{report} cannot be read: {reason_of(error)}; run the diagnosis on a whole run folder."
        ) from error
    # All text in the page is escaped: none can pose as these marks.
    head, mark, rest = page.partition(START)
    if mark:
        page = head.rstrip("\n") + "\n" + rest.partition(END)[2].lstrip("\n")
    body, footer, end = page.rpartition("<footer>")
    if not footer:
        raise RunFolderError(f"{report} is not a report of this app: it was left as it is.")
    write_text(report, f"{body}{diagnosis_section(metrics)}\n{footer}{end}")


def _eigenvalue(student: Mapping[str, Any]) -> str:
    found = student["curvature"]
    return _shown(found["value"]) + ("" if found["converged"] else " (not converged)")


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
