"""From Flower's flat run config to one frozen, checked :class:`Config`."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fedmitr_app.config.presets import PRESETS
from fedmitr_app.config.schema import Config
from fedmitr_app.config.validation import validate
from fedmitr_app.errors import ConfigError

RawValue = bool | int | float | str


def parse_config(given: Mapping[str, Any]) -> Config:
    """Return the checked configuration of a run.

    Parameters
    ----------
    given : Mapping[str, bool | int | float | str]
        Flat keys such as ``inversion.batch-size``, each given on purpose: it wins over the
        preset. A key that is missing takes the preset's value, else its default.

    Raises
    ------
    ConfigError
        For an unknown key, a wrong type or an impossible value, in one sentence.
    """
    defaults = default_run_config()
    for key in given:
        if key not in defaults:
            raise ConfigError(_unknown_key(key, defaults))
    preset = given.get("preset", defaults["preset"])
    if not isinstance(preset, str) or preset not in PRESETS:
        known = ", ".join(repr(name) for name in PRESETS)
        raise ConfigError.bad_value("preset", preset, f"one of {known}")
    config: Config = _build(Config, {**preset_run_config(preset), **given}, prefix="")
    validate(config)
    return config


def given_settings(run_config: Mapping[str, Any], named: Iterable[str] = ()) -> dict[str, Any]:
    """Return what a user gave of a run config that already holds a default for every key.

    Parameters
    ----------
    run_config : Mapping[str, bool | int | float | str]
        Flat keys, touched or not.
    named : Iterable[str]
        Keys that are known to be given, also where their values equal the defaults. Of the
        others those were given, in the app's ``pyproject.toml``, that differ.
    """
    named, defaults = set(named), default_run_config()
    return {
        key: value
        for key, value in run_config.items()
        if key in named or key not in defaults or _differs(value, defaults[key])
    }


def differing(config: Config) -> dict[str, RawValue]:
    """Return the settings that are not at their defaults, or not what the preset says."""
    defaults, preset = default_run_config(), PRESETS[config.preset]
    return {
        key: value
        for key, value in flatten(config).items()
        if value != defaults[key] or value != preset.get(key, value)
    }


def changed_from_preset(config: Config) -> dict[str, RawValue]:
    """Return the settings that are not what the preset comes to."""
    usual = preset_run_config(config.preset)
    return {key: value for key, value in flatten(config).items() if value != usual[key]}


def default_run_config() -> dict[str, RawValue]:
    """Return every run-config key with its default, as TOML holds it."""
    return flatten(Config())


def preset_run_config(preset: str) -> dict[str, RawValue]:
    """Return every run-config key with what a preset, given alone, makes of it."""
    return {**default_run_config(), **PRESETS[preset], "preset": preset}


def flatten(config: Any, prefix: str = "") -> dict[str, RawValue]:
    """Return a (nested) configuration as flat run-config keys and TOML values."""
    flat: dict[str, RawValue] = {}
    for key, spec in _settings(type(config), prefix):
        value = getattr(config, spec.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{key}.")
        elif isinstance(value, tuple):
            # In full: a run's record must lead to the same run again.
            flat[key] = ",".join(repr(item).removesuffix(".0") for item in value)
        else:
            flat[key] = value
    return flat


def as_run_config(settings: Mapping[str, RawValue]) -> str:
    """Return settings as ``flwr run --run-config`` takes them."""
    return " ".join(f"{key}={_toml(value)}" for key, value in settings.items())


def _toml(value: RawValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A literal string, which TOML takes as it stands, unless it holds the quote itself.
        return json.dumps(value, ensure_ascii=False) if "'" in value else f"'{value}'"
    return repr(value)


def _settings(cls: type, prefix: str) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for spec in dataclasses.fields(cls):
        yield prefix + spec.name.replace("_", "-"), spec


def _build(cls: type, flat: Mapping[str, Any], prefix: str) -> Any:
    values = {}
    for key, spec in _settings(cls, prefix):
        if isinstance(spec.type, type) and dataclasses.is_dataclass(spec.type):
            values[spec.name] = _build(spec.type, flat, f"{key}.")
            continue
        try:
            values[spec.name] = spec.metadata["parse"](flat[key])
        except ValueError as allowed:
            raise ConfigError.bad_value(key, flat[key], str(allowed)) from None
    return cls(**values)


def _differs(value: Any, default: Any) -> bool:
    # 1 == True and 1 == 1.0 in Python: only the last pair means the same setting.
    return value != default or isinstance(value, bool) != isinstance(default, bool)


def _unknown_key(key: str, defaults: Mapping[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(key, defaults, n=3, cutoff=0.5)
    section = key.split(".")[0]
    known = close or [name for name in defaults if name.startswith(f"{section}.")]
    hint = ", ".join(known or sorted({name.split(".")[0] for name in defaults}))
    return f"{key} is not a setting of this app: did you mean one of {hint}?"
