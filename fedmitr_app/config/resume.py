"""What may differ between a run and its going on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedmitr_app.config.fields import RESULT_NEUTRAL
from fedmitr_app.config.schema import Config
from fedmitr_app.errors import ConfigError
from fedmitr_app.utils.text import harmless

_LONGEST = 200  # the settings that a run began with may be somebody else's


def decisive(settings: Any) -> Any:
    """Return a dataclass of settings without those that don't change the result, as dicts."""
    if not dataclasses.is_dataclass(settings):
        return settings
    return {
        field.name: decisive(getattr(settings, field.name))
        for field in dataclasses.fields(settings)
        if not field.metadata.get(RESULT_NEUTRAL)
    }


def result_neutral_keys(config: Config) -> set[str]:
    """Return the run-config keys that say where and how patiently a run works.

    Devices agree to rounding only; without that a run whose GPU is gone would be lost.
    """
    found = set()
    for section in dataclasses.fields(config):
        settings = getattr(config, section.name)
        if dataclasses.is_dataclass(settings):
            names = {field.name for field in dataclasses.fields(settings)}
            names -= decisive(settings).keys()
            found |= {f"{section.name}.{name}".replace("_", "-") for name in names}
    return found


def require_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under settings that would give another result.

    Raises
    ------
    ConfigError
        Naming each setting, as it is and as it was.
    """
    missing = "absent"
    changed = [
        harmless(f"{key} = {now.get(key, missing)!r} (was {before.get(key, missing)!r})", _LONGEST)
        for key in sorted({*before, *now} - result_neutral_keys(Config()))
        if now.get(key, missing) != before.get(key, missing)
    ]
    if changed:
        shown = harmless(", ".join(changed), 10 * _LONGEST)
        raise ConfigError(
            "output.resume = true goes on with the settings that the run began with, and these "
            f"differ: {shown}; set them back, or choose another output.run-dir."
        )
