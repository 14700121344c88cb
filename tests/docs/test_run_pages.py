"""A run's folder and report hold nothing that their pages don't describe."""

import re

import pytest

from tests.helpers.documents import DOCS
from tests.helpers.federation import Federation, without_processes

REFERENCE = DOCS / "reference"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    federation = Federation(tmp_path_factory.mktemp("run") / "run")
    with pytest.MonkeyPatch.context() as patch:
        without_processes(patch.setattr)
        federation.run()
    return federation.folder


def test_every_file_of_a_run_is_described(run):
    page = (REFERENCE / "run-folder.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+`) \|", page, re.M)
    described = {name for cell in cells for name in re.findall("`([^`]+)`", cell)}
    left = {path.name + "/" * path.is_dir() for path in run.iterdir()} - {".lock"}
    assert left - described == set()
    unfinished = {"distillation.safetensors", "evaluation.json", "control/"}
    assert described - left == {*unfinished, "rejected/", "diagnosis.json"}


def test_every_section_of_the_report_is_described(run):
    page = (REFERENCE / "report.md").read_text(encoding="utf-8")
    sections = re.findall(r"<h2>([^<]+)</h2>", (run / "report.html").read_text(encoding="utf-8"))
    assert len(sections) > 5
    assert set(sections) - set(re.findall(r"^## (.+)$", page, re.M)) == set()
