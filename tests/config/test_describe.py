"""Settings are described once: what the project file and the page say is the schema's."""

import importlib.util
import re
from pathlib import Path

import pytest

from fedmitr_app.config.describe import _fields, described
from fedmitr_app.config.schema import Config
from fedmitr_app.methods import METHODS

ROOT = Path(__file__).parents[2]


def script():
    spec = importlib.util.spec_from_file_location("made", ROOT / "docs" / "make_settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_those_that_the_schema_makes():
    for path, text in script().made().items():
        assert path.read_text(encoding="utf-8") == text, f"run docs/make_settings.py: {path}"


def test_every_setting_says_what_it_does_and_a_dozen_are_to_begin_with():
    settings = described()
    assert len(settings) > 100 and all(len(setting.doc) > 5 for setting in settings)
    assert 10 <= sum(setting.basic for setting in settings) <= 20


CHOICES = {}
for _key, _spec in _fields(Config(), ""):
    try:
        _spec.metadata["parse"](object())
    except ValueError as _error:
        if str(_error).startswith("one of "):
            CHOICES[_key] = re.findall(r"'([^']+)'", str(_error))


@pytest.mark.parametrize("key", CHOICES)
def test_a_choice_names_every_word_that_it_takes(key):
    (doc,) = [setting.doc for setting in described() if setting.key == key]
    assert [word for word in CHOICES[key] if f"'{word}'" not in doc] == []


def test_every_method_of_a_server_is_named():
    (doc,) = [setting.doc for setting in described() if setting.key == "server.method"]
    names = [name for name, method in METHODS.items() if "real-images" not in method.needs]
    assert [name for name in names if f"'{name}'" not in doc] == []
