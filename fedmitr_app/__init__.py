"""One-shot federated learning with Vision Transformers (FedMITR, arXiv 2605.10748).

    import fedmitr_app as fedmitr

    result = fedmitr.fuse(state_dicts, model, num_examples=[...])
    predictor = fedmitr.load("fedmitr-runs/...")

Importing the package imports neither Flower nor torch: each name is fetched when it is used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "FedMITR": "fedmitr_app.strategies",
    "OneShotStrategy": "fedmitr_app.strategies",
    "FusedModel": "fedmitr_app.api",
    "fuse": "fedmitr_app.api",
    "Predictor": "fedmitr_app.predictor",
    "load": "fedmitr_app.predictor",
    "register": "fedmitr_app.methods",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    """Import a name of the package's when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    """List the names that can be used, those that are not imported yet among them."""
    return sorted({*globals(), *_WHERE})
