"""The page of errors quotes the source: no sentence on it is one that nobody says."""

import ast
import re

import pytest

from tests.helpers.documents import DOCS

ROOT = DOCS.parent
PAGE = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE, re.M)


def sentences():
    """Every text in the package, with … for what is put into it."""
    found = []
    for path in (ROOT / "fedmitr_app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [" ".join(text.split()) for text in found]


@pytest.fixture(scope="module")
def said():
    return sentences()


def is_said(quoted: str, said: list[str]) -> bool:
    """Whether one text holds all parts of a quotation, in their order."""
    parts = [part.strip() for part in quoted.split("…") if part.strip()]
    pattern = re.compile(".*?".join(map(re.escape, parts)))
    return any(pattern.search(text) for text in said)


def test_it_quotes_enough():
    assert len(QUOTED) > 50 and len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_source_says_it(quoted, said):
    assert is_said(quoted, said)


def test_what_nobody_says_is_found_out(said):
    assert not is_said("is not permitted: it shall be …", said)
