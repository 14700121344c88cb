"""The report's single classes: of two as of a thousand."""

from pathlib import Path

import pytest

from fedmitr_app.report.classes import classes_section, confusion_matrix
from fedmitr_app.report.data import ReportData
from fedmitr_app.report.figures_labels import confusion


def data_of(classes: int, names: list[str] | None = None) -> ReportData:
    """Ten images a class; class i is told i times modulo 11, else taken for the next."""
    right = [index % 11 for index in range(classes)]
    confusions = [
        [index, (index + 1) % classes, 10 - min(count, 10)]
        for index, count in enumerate(right)
        if count < 10
    ]
    right = [min(count, 10) for count in right]
    by_class = {
        "images": [10] * classes,
        "student": right,
        "fedavg": [0] * classes,
        "confusions": sorted(confusions, key=lambda pair: -pair[2]),
    }
    shown = [f"name {index}" for index in range(classes)] if names is None else names
    return ReportData(metrics={"by_class": by_class}, class_names=shown)


@pytest.mark.parametrize(
    ("classes", "rows", "drawn"), [(2, 2, True), (20, 20, True), (60, 15, True), (1000, 15, False)]
)
def test_many_classes_are_the_worst_and_the_best(
    tmp_path: Path, classes: int, rows: int, drawn: bool
) -> None:
    data = data_of(classes)
    figure = confusion(confusion_matrix(data.by_class), tmp_path / "c.png", data.class_names)
    assert (figure is not None) == drawn
    section = classes_section(data, figure)
    table = section.partition("</table>")[0]
    assert table.count('<th scope="row">') == rows
    assert ("the 10 worst and the 5 best" in table) == (rows == 15)
    assert '<td class="number">0.0 %</td>' in table
    assert "What the student takes for what" in section


def test_a_matrix_has_every_image_once() -> None:
    data = data_of(30)
    matrix = confusion_matrix(data.by_class)
    assert all(sum(row) == 10 for row in matrix)
    assert matrix[3][3] == 3 and matrix[3][4] == 7


def test_nothing_tested_is_no_section() -> None:
    assert classes_section(ReportData(), None) == ""


def test_names_are_escaped_and_lacking_ones_are_numbers() -> None:
    section = classes_section(data_of(3, ["<b>", "<i>"]), None)
    assert "&lt;b&gt;" in section and "<b>" not in section
    assert '<th scope="row">2</th>' in section
