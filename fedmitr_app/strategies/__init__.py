"""Flower strategies that turn one round of uploads into a global model."""

from fedmitr_app.strategies.ensemble import BareEnsemble, split_ensemble
from fedmitr_app.strategies.fedavg import OneShotFedAvg
from fedmitr_app.strategies.fedmitr import FedMITR
from fedmitr_app.strategies.one_shot import OneShotStrategy
from fedmitr_app.strategies.one_shot_method import OneShotMethod
from fedmitr_app.uploads import RoundOutcome

__all__ = [
    "BareEnsemble",
    "FedMITR",
    "OneShotFedAvg",
    "OneShotMethod",
    "OneShotStrategy",
    "RoundOutcome",
    "split_ensemble",
]
