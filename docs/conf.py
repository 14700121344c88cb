"""Settings of the documentation's site: Sphinx, MyST pages, the furo theme."""

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fedmitr_app import __version__  # noqa: E402

project = "fedmitr-app"
author = "The fedmitr-app authors"
copyright = author
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
smartquotes = False  # 'word' is a value
nb_execution_mode = "off"  # a test runs the notebooks

napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings have the types, with shapes
autodoc_class_signature = "mixed"

# Types are written as in prose; these others are explained where they are, in the code.
_CORE = "models.wrap_model|models.spec_of|methods.registry"
nitpick_ignore_regex = [
    ("py:class", ".*"),
    ("py:(func|mod)", rf"fedmitr_app\.({_CORE})|settings_for|join_ensemble|harmless"),
    ("py:exc", "AggregationError"),  # Flower's
]

copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"fedmitr-app {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False

linkcheck_timeout = 30
linkcheck_retries = 2
linkcheck_workers = 4
linkcheck_anchors = False


def _without_type(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keep napoleon from reading a type off an attribute's first words before a colon."""
    if what in ("attribute", "property"):
        lines.insert(0, "")


def setup(app: Sphinx) -> None:
    """Run before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _without_type, priority=400)
