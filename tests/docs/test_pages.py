"""Pages that are made, references outside the site, and README's blocks."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fedmitr_app as fedmitr
from tests.helpers.documents import DOCS, blocks, commands_of, run_python
from tests.helpers.library import CLASSES, EXAMPLES, SMALL, states, vit
from tests.helpers.typed import ROOT, check, script

README = ROOT / "README.md"
ELSEWHERE = {
    # Done as they stand, or nearly, by what is named.
    "pytest": "the command that ran this test",
    "sphinx-build": ".ci/run",
    "git": "clones",
}
ROOMS = "docs|fedmitr_app|experiments|deploy|examples|benchmarks"
NAMED = re.compile(rf"(?<![\w/.-])(?:{ROOMS})/[\w/-]+\.(?:md|py|png|csv|ipynb|toml|sh)\b")


def test_the_page_of_commands_is_what_the_parsers_make():
    made = script("make_command_line")
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run docs/make_command_line.py"


def tracked():
    """Every text file of the project."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = listed.stdout.splitlines()
    if listed.returncode or not names:  # an unpacked copy
        names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
    kinds = (".md", ".py", ".toml", ".sh", ".yml", ".ipynb", ".cff")
    return [ROOT / name for name in names if name.endswith(kinds) and (ROOT / name).is_file()]


def test_every_file_of_the_documentation_that_is_named_is_there():
    named = 0
    for path in tracked():
        text = path.read_text(encoding="utf-8")
        for name in NAMED.findall(text):
            named += 1
            assert (ROOT / name).is_file(), f"{path.relative_to(ROOT)} names {name}"
    assert named > 20


def anchors(page: Path):
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize(
    "name",
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md", "experiments/README.md"]
    + ["examples/custom-method/README.md", "examples/plug-in/README.md"],
)
def test_relative_links_lead_somewhere(name):
    page = ROOT / name
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    for link in (one or other for one, other in links):
        if re.match(r"https?:", link):
            continue
        target, _, anchor = link.partition("#")
        found = page.parent / target if target else page
        assert found.exists(), f"{name}: {link}"
        assert not anchor or anchor in anchors(found), f"{name}: {link}"


def test_readme_every_command_can_be_typed():
    """Those that take long are done by tests/test_end_to_end.py and tests/commands."""
    for words in commands_of(README):
        if words[0] not in ELSEWHERE:
            check(words)


def test_readme_python_is_run(tmp_path, monkeypatch):
    """As it stands, with smaller settings."""
    monkeypatch.chdir(tmp_path)
    fuse = fedmitr.fuse

    def small(*uploads, num_examples, **others):
        return fuse(*uploads, num_examples=EXAMPLES, changes=SMALL, device="cpu", **others)

    monkeypatch.setattr(fedmitr, "fuse", small, raising=False)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save("x.jpg")
    names = {"state_dicts": states(), "model": vit()}
    names |= {"images": torch.zeros(4, 1, 16, 16), "labels": torch.arange(4) % CLASSES}
    assert run_python(README, names)["result"].model is not None


def test_readme_diffs_are_the_examples():
    shown = [
        line
        for block in blocks(README, "diff")
        for line in block.text.splitlines()
        if line[:1] in "+-" and line.strip()
    ]
    sources = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "examples" / "plug-in").rglob("*.py")
    )
    assert shown
    for line in shown:
        assert line[1:].strip() in sources, line


def test_readme_has_no_block_that_nobody_checks():
    kinds = {block.language for block in blocks(README)}
    assert kinds <= {"bash", "python", "diff", "text"}, kinds


def test_the_pages_of_the_site_are_in_its_contents():
    """Sphinx warns of a page outside; this says it without it, and of a folder without index."""
    for folder in {page.parent for page in DOCS.rglob("*.md") if "_build" not in page.parts}:
        assert (folder / "index.md").is_file(), folder
