"""The reader of documentation pages: what it finds, and what it would miss."""

import pytest

from tests.helpers.documents import (
    Block,
    blocks,
    commands,
    commands_of,
    inline_code,
    options,
    run_python,
)

PAGE = """# Title `a=1`

| `b` |
|---|
| `c d` |

```bash
# a comment
A=1 fedmitr check --run-config "preset='quick' seed=1" \\
  --num-supernodes 4   # more
pip install x && fedmitr predict run 'a b.jpg'
```

````{note}
Inside.

```{code-block} python
:caption: first.py
:linenos:

first = 1
```
````

```{literalinclude} ../x.py
:lines: 3-
```

```text
not = python
```

```python
second = first + 1
assert third
```
"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_blocks_are_found_where_they_are(page):
    found = blocks(page)
    languages = [block.language for block in found]
    assert languages == ["bash", "python", "{note}", "{literalinclude}", "text", "python"]
    lines = PAGE.splitlines()
    for block in blocks(page, "python", "bash"):
        assert lines[block.line - 1] == block.text.splitlines()[0]
    assert found[3] == Block("{literalinclude}", ":lines: 3-\n", 26, "../x.py")
    assert [block.caption for block in blocks(page, "python")] == ["first.py", ""]


def test_inline_code_is_found_in_tables_too_and_not_in_blocks(page):
    assert inline_code(page) == ["a=1", "b", "c d"]


def test_commands_are_words_without_comments_and_variables(page):
    check, predict = commands_of(page, "fedmitr")
    assert check[:2] == ["fedmitr", "check"] and options(check, "--num-supernodes") == ["4"]
    assert options(check, "--run-config") == ["preset='quick' seed=1"]
    assert predict == ["fedmitr", "predict", "run", "a b.jpg"]
    assert [words[0] for words in commands_of(page)] == ["fedmitr", "pip", "fedmitr"]
    assert commands("what is seen\n$ ls -l\n$ pwd\nseen") == [["ls", "-l"], ["pwd"]]
    assert options(["x", "--set=a=1"], "--set") == ["a=1"]


def test_python_runs_in_one_namespace_and_errors_name_the_line(page):
    with pytest.raises(NameError) as caught:
        run_python(page, {})
    last = caught.traceback[-1]
    assert str(last.path) == str(page)
    assert PAGE.splitlines()[last.lineno] == "assert third"
    assert run_python(page, {"third": True})["second"] == 2
