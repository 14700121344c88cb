"""What may differ between a run and its going on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedmitr_app.config.fields import PLACEMENT
from fedmitr_app.errors import ConfigError

# Where and how patiently it runs. Devices agree to rounding only; without that a run whose GPU
# is gone would be lost.
MAY_DIFFER = (
    "output.run-dir",
    "output.resume",
    "client.device",
    "server.device",
    "server.wait-for-nodes",
    "server.timeout",
    "server.patience",
    "server.absence",
    "server.min-clients",
    "server.eval-batch-size",
    "inversion.backend",
    "inversion.workers",
    "inversion.ray-address",
)


def decisive(settings: Any) -> dict[str, Any]:
    """Return a dataclass of settings as a dict, without what only says where work is done."""
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not field.metadata.get(PLACEMENT):
            found[field.name] = decisive(value) if dataclasses.is_dataclass(value) else value
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
        f"{key} = {now.get(key, missing)!r} (was {before.get(key, missing)!r})"
        for key in sorted({*before, *now} - {*MAY_DIFFER})
        if now.get(key, missing) != before.get(key, missing)
    ]
    if changed:
        raise ConfigError(
            "output.resume = true goes on with the settings that the run began with, and these "
            f"differ: {', '.join(changed)}; set them back, or choose another output.run-dir."
        )
