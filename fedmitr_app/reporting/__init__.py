"""What a run leaves behind: its folder, its log lines, its figures and its report."""

from fedmitr_app.reporting.data import ClientRow, Curves, PoolSample, ReportData
from fedmitr_app.reporting.environment import describe_environment, device_lines, resolve_device
from fedmitr_app.reporting.progress import Progress, headline
from fedmitr_app.reporting.run_folder import RunFolder
from fedmitr_app.reporting.status import COMPLETED

__all__ = [
    "COMPLETED",
    "ClientRow",
    "Curves",
    "PoolSample",
    "Progress",
    "ReportData",
    "RunFolder",
    "describe_environment",
    "device_lines",
    "headline",
    "resolve_device",
]
