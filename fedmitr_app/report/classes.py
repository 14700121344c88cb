"""The report's section on single classes: how well each is told, and what it is taken for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmitr_app.report import html
from fedmitr_app.report.data import ReportData
from fedmitr_app.report.tables import percent

MOST_CLASSES = 20
"""That are all shown; of more, the worst and the best."""
_WORST, _BEST, _PAIRS = 10, 5, 10
_MODELS = {"student": "student", "teacher": "teacher", "fedavg": "FedAvg"}


def classes_section(data: ReportData, figure: Path | None) -> str:
    """Return the section; nothing where no test set was seen by the classes."""
    found = data.by_class
    images = found.get("images") or ()
    models = [name for name in _MODELS if len(found.get(name) or ()) == len(images)]
    if not images or not models:
        return ""
    who = _MODELS[models[0]]
    header = ["class", "test images", *(_MODELS[name] for name in models)]
    shown, which = _chosen(images, found[models[0]])
    rows = [
        [
            class_name(data.class_names, index),
            str(images[index]),
            *(_share(found[name][index], images[index]) for name in models),
        ]
        for index in shown
    ]
    confused = _confusions(data, images)
    pairs = html.table(
        ["class", f"the {who} said", "images", "of the class"],
        confused,
        numbers=(2, 3),
        caption=f"What the {who} takes for what, most often first.",
    )
    return html.section(
        "Class by class",
        html.table(
            header,
            rows,
            numbers=range(1, len(header)),
            caption=f"Accuracy on the test images of each class{which}.",
        ),
        html.figure(
            figure,
            f"A square for each class and answer of the {who}; right answers lie on the diagonal",
            f"Each row is a class, each column what the {who} said. The stronger the "
            "colour, the larger the share of the class's test images. A strong column "
            "off the diagonal is a class that others are taken for.",
        ),
        pairs if confused else "",
    )


def class_name(names: Sequence[str], index: int) -> str:
    """Return a class's name, its number where it has none."""
    return str(names[index]) if index < len(names) else str(index)


def _chosen(images: Sequence[int], right: Sequence[int]) -> tuple[list[int], str]:
    """Return which classes to show, and that they are not all."""
    tested = [index for index, count in enumerate(images) if count]
    if len(images) <= MOST_CLASSES:
        return list(range(len(images))), ""
    order = sorted(tested, key=lambda index: (right[index] / images[index], index))
    if len(order) <= _WORST + _BEST:
        return order, ", the worst first"
    words = f": the {_WORST} worst and the {_BEST} best of {len(tested)}"
    return [*order[:_WORST], *order[-_BEST:]], words


def _confusions(data: ReportData, images: Sequence[int]) -> list[list[str]]:
    return [
        [
            class_name(data.class_names, label),
            class_name(data.class_names, answer),
            str(count),
            _share(count, images[label]),
        ]
        for label, answer, count in (data.by_class.get("confusions") or ())[:_PAIRS]
    ]


def _share(count: int, of: int) -> str:
    return percent(count / of) if of else "-"


def confusion_matrix(found: Mapping[str, Any]) -> list[list[int]]:
    """Return the answers to each class, ``[classes, classes]``, of the model with confusions."""
    right = found.get("student") or found.get("teacher") or ()
    matrix = [[0] * len(right) for _ in right]
    for index, count in enumerate(right):
        matrix[index][index] = count
    for label, answer, count in found.get("confusions") or ():
        matrix[label][answer] = count
    return matrix
