"""Flower strategies that turn one round of uploads into a global model."""

from fedmitr_app.strategies.fedmitr import FedMITR
from fedmitr_app.strategies.one_shot import OneShotResult, OneShotStrategy, split_ensemble
from fedmitr_app.strategies.upload_round import UploadRound
from fedmitr_app.uploads import RoundOutcome

__all__ = [
    "FedMITR",
    "OneShotResult",
    "OneShotStrategy",
    "RoundOutcome",
    "UploadRound",
    "split_ensemble",
]
