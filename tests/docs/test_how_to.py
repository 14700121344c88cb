"""The how-to guides: every command is read by its own parser, every block of Python run."""

import pytest

from fedmitr_app.errors import ConfigError
from tests.helpers.documents import DOCS, blocks, commands_of, run_python
from tests.helpers.installed import custom_method
from tests.helpers.typed import check

PAGES = sorted((DOCS / "how-to").glob("*.md"))
OURS = [
    *("choose-settings", "differential-privacy", "exclude-clients", "gpu", "ray-cluster"),
    *("resume", "write-a-method"),
]
"""Pages on which nothing may stand that is not checked here."""


@pytest.fixture
def with_the_example(tmp_path):
    """The example's method is known, as if its package were installed."""
    with custom_method(tmp_path / "site"):
        yield


@pytest.mark.usefixtures("with_the_example")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_can_be_typed(page):
    for words in commands_of(page):
        if page.stem in OURS or words[0] in ("flwr", "fedmitr"):
            check(words)


@pytest.mark.parametrize("name", OURS)
def test_every_block_is_of_a_kind_that_is_checked(name):
    kinds = {block.language for block in blocks(DOCS / "how-to" / f"{name}.md")}
    assert kinds <= {"bash", "python", "{literalinclude}"}


def test_what_can_be_run_is_run():
    names = run_python(DOCS / "how-to" / "differential-privacy.md", {})
    (mod,) = names["app"]._mods
    assert mod.epsilon == 1e4


def test_the_files_that_pages_include_are_there():
    for name in OURS:
        page = DOCS / "how-to" / f"{name}.md"
        for block in blocks(page, "{literalinclude}"):
            assert (page.parent / block.argument).is_file()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["flwr", "run", ".", "--strem"], Exception),
        (["flwr", "run", ".", "--run-config", "seeed=1"], ConfigError),
        (["flwr", "run", ".", "--run-config", "server.method='fedmitre'"], ConfigError),
        (["flwr", "run", ".", "--federation-config", "num-supernode=5"], AssertionError),
        (["fedmitr", "predict", "--tpo", "3"], AssertionError),
        (["fedmitr", "experiments", "nothing.toml", "results"], ConfigError),
        (["ray", "begin"], AssertionError),
        (["pip", "install", "-e", "example"], AssertionError),
        (["rm", "-r", "runs"], KeyError),
    ],
)
def test_a_command_that_cannot_be_typed_is_found_out(words, error):
    with pytest.raises(error):
        check(words)
