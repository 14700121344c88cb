"""The example's method of one's own, as if it were installed."""

import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedmitr_app.methods import METHODS

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom-method"
GROUP = "fedmitr_app.methods"


@contextmanager
def custom_method(site: Path) -> Iterator[None]:
    """Put the example where Python finds installed packages, with its own entry points."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    about = site / f"best_of_two-{project['version']}.dist-info"
    about.mkdir(parents=True)
    shutil.copy(EXAMPLE / "best_of_two.py", site)
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    named = [f"{name} = {where}" for name, where in project["entry-points"][GROUP].items()]
    (about / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *named, ""]))
    sys.modules.pop("best_of_two", None)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(site)
            yield
    finally:
        METHODS.pop("best-of-two", None)
        sys.modules.pop("best_of_two", None)
