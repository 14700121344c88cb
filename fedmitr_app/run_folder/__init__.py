"""The folder that a run leaves: its files, its status, its global model."""

from fedmitr_app.run_folder.folder import RunFolder
from fedmitr_app.run_folder.status import COMPLETED

__all__ = ["COMPLETED", "RunFolder"]
