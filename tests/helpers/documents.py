"""The fenced blocks of a documentation page, to be run or checked as they stand there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt

DOCS = Path(__file__).parents[2] / "docs"
_OPTION = re.compile(r"\A(:[\w-]+:.*\n)+\n?")
_CODE = ("{code-block}", "{code}", "{code-cell}")


class Block(NamedTuple):
    """A fenced block."""

    language: str
    """The word behind the fence, such as ``bash``, or a directive, ``{literalinclude}``."""
    text: str
    line: int
    """Of the text's first line in the page, from 1."""
    argument: str = ""
    """What follows the language, such as a directive's path."""
    caption: str = ""
    """Of MyST's own code blocks: the name of the file that the block shows."""


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return a page's fenced blocks in their order, of these languages or of all.

    Blocks within a directive (a note, a tab) count; MyST's own code blocks count as their language.
    """
    found = _read(page.read_text(encoding="utf-8"), 1)
    return [block for block in found if not languages or block.language in languages]


def _read(text: str, first: int) -> Iterator[Block]:
    for token in MarkdownIt().parse(text):
        if token.type != "fence":
            continue
        language, _, argument = token.info.strip().partition(" ")
        inner, line, caption = token.content, first + token.map[0] + 1, ""
        if language in _CODE:
            options = _OPTION.match(inner)
            skipped = options[0] if options else ""
            inner, line = inner[len(skipped) :], line + skipped.count("\n")
            language, argument = argument.strip() or "python", ""
            named = re.search(r"^:caption: (.+)$", skipped, re.M)
            caption = named[1].strip() if named else ""
        if language.startswith("{"):
            yield from _read(inner, line)
        yield Block(language, inner, line, argument.strip(), caption)


def inline_code(page: Path) -> list[str]:
    """Return what stands in a page's single backticks, outside of its blocks."""
    parser = MarkdownIt().enable("table")
    inlines = [token.children or [] for token in parser.parse(page.read_text(encoding="utf-8"))]
    return [each.content for children in inlines for each in children if each.type == "code_inline"]


def commands(text: str) -> list[list[str]]:
    """Return the commands of a shell block, each as its words.

    Comments are left out, lines that end in a backslash continued, ``&&`` begins a new command,
    and what stands before the first prompt of a block with prompts (``$ ``) isn't there.
    """
    lines = text.replace("\\\n", " ").splitlines()
    prompted = [line[2:] for line in lines if line.startswith("$ ")]
    found = []
    for line in prompted or lines:
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                found.append(words)
                words = []
    return found


def commands_of(page: Path, *names: str) -> list[list[str]]:
    """Return the commands of a page's ``bash`` and ``console`` blocks that begin with a name.

    Variables set before a command (``NAME=value command``) are left out.
    """
    found = []
    for block in blocks(page, "bash", "console", "shell", "sh"):
        for words in commands(block.text):
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.S):
                words = words[1:]
            if words and (not names or words[0] in names):
                found.append(words)
    return found


def options(words: list[str], name: str) -> list[str]:
    """Return what a command gives for an option, once for each time that it does."""
    following = [words[n + 1] for n, word in enumerate(words[:-1]) if word == name]
    return following + [word[len(name) + 1 :] for word in words if word.startswith(f"{name}=")]


def run_python(page: Path, namespace: dict[str, Any]) -> dict[str, Any]:
    """Run a page's Python blocks in their order, in one namespace; errors name the page's lines."""
    for block in blocks(page, "python"):
        run_block(page, block, namespace)
    return namespace


def run_block(page: Path, block: Block, namespace: dict[str, Any]) -> None:
    """Run one block of Python."""
    code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
    exec(code, namespace)
