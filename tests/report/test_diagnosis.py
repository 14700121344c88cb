"""The report's section on the theory: there or not, once, escaped."""

from pathlib import Path

import pytest

from fedmitr_app.errors import RunFolderError
from fedmitr_app.report.data import ReportData
from fedmitr_app.report.diagnosis import add_to_report, diagnosis_section, diagnosis_tables
from fedmitr_app.report.page import write_report
from fedmitr_app.run_folder import RunFolder
from fedmitr_app.utils.files import as_json
from tests.helpers.diagnoses import WELL

CLAIMS = [
    {"sentence": "This is less: 1 against 2, holds here.", "holds": True},
    {"sentence": "<b> is less: 2 against 1, does not hold here.", "holds": False},
    {"sentence": "That is less: 1 against 2, can't be told here.", "holds": None},
]


def metrics(**changes):
    return {"diagnosis": {**as_json(WELL.to_dict()), "claims": CLAIMS, **changes}}


def test_nothing_is_shown_of_nothing():
    assert diagnosis_section({}) == diagnosis_section({"diagnosis": {}}) == ""


def test_sentences_and_figures_are_shown_and_escaped():
    section = diagnosis_section(metrics())
    assert "<p>This is less: 1 against 2, holds here.</p>" in section
    assert '<p class="warning">&lt;b&gt; is less' in section
    assert '<p class="note">That is less' in section
    tables = list(diagnosis_tables(metrics()["diagnosis"]))
    assert [header[1:] for header, _ in tables] == [
        ["sparse", "dense"],
        ["variance", "over its squared mean"],
        ["the run's", "of dense inversion"],
    ]
    assert tables[0][1][0] == ["norm of an image's gradient", "0.1", "1"]
    assert tables[2][1][1][1:] == ["-2", "3 (not converged)"]
    for _, rows in tables:
        assert all(f">{row[0].replace(chr(39), '&#x27;')}</th>" in section for row in rows)


def test_a_figure_that_is_not_finite_is_told():
    variance = {name: {"total": None, "relative": 1.0} for name in ("hard", "relabel", "none")}
    found = metrics(gradients=None, students={}, variance=variance)["diagnosis"]
    ((_, rows),) = diagnosis_tables(found)
    assert {row[1] for row in rows} == {"not finite"}


def test_the_page_gets_one_section_however_often(folder: RunFolder):
    before = write_report(folder, ReportData()).read_text()
    add_to_report(folder.report, metrics())
    once = folder.report.read_text()
    add_to_report(folder.report, metrics())
    assert folder.report.read_text() == once
    assert once.count("What the theory claims") == 1
    assert once.startswith(before.partition("<footer>")[0]) and once.endswith("</html>\n")
    rendered = write_report(folder, ReportData(metrics=metrics())).read_text()
    assert rendered.count("What the theory claims") == 1
    add_to_report(folder.report, metrics())
    assert folder.report.read_text().count("What the theory claims") == 1


def test_another_page_is_left_as_it_is(tmp_path: Path):
    page = tmp_path / "report.html"
    with pytest.raises(RunFolderError, match="cannot be read"):
        add_to_report(page, metrics())
    page.write_text("<p>mine</p>")
    with pytest.raises(RunFolderError, match="not a report of this app"):
        add_to_report(page, metrics())
    assert page.read_text() == "<p>mine</p>"
