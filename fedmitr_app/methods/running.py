"""Run a method on a task, as the strategy and the library both do: the same bits from either."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from fedmitr_app.methods.background import run_in_background
from fedmitr_app.methods.registry import Method
from fedmitr_app.methods.result import MethodResult
from fedmitr_app.methods.task import Task
from fedmitr_app.methods.uninverted import without_inversion

_log = logging.getLogger(__name__)


class Screened(NamedTuple):
    """A task without the clients that are of no use or distrusted."""

    task: Task
    reasons: dict[str, str]
    """Keys of those left out, and why."""
    left_out: frozenset[str]
    """Their keys; of a method that only averages, also those that no average takes."""


def drop_unusable(method: Method, task: Task) -> Screened:
    """Leave out whose uploads are of no use, or distrusted where a defence is on.

    Raises
    ------
    UploadError
        If nobody is left.
    """
    rest, reasons = task, {}
    if method.screens or task.settings.teacher.defence != "none":
        rest = task.defended()
    else:  # what the weights alone tell; nobody is asked anything
        for client, weighed in zip(task.clients, task.weight_checks, strict=True):
            for reason in weighed.reasons:
                _log.warning("%s is suspicious: %s.", client.key, reason)
    kept = {client.key for client in rest.clients}
    if len(kept) < len(task.clients):
        judged = zip(task.clients, task.trust, task.weight_checks, strict=True)
        reasons = {
            each.key: trust.reason or weighed.reasons[0]
            for each, trust, weighed in judged
            if each.key not in kept
        }
    pairs = zip(task.clients, task.weight_checks, strict=True)
    unused = {each.key for each, weighed in pairs if weighed.unfit and method.averages}
    return Screened(rest, reasons, frozenset(unused.union(reasons)))


def run_with_control(
    method: Method, task: Task, folder: Path
) -> tuple[MethodResult, MethodResult | None]:
    """Run a method, and in the background the control: images neither chosen nor inverted.

    Parameters
    ----------
    folder : Path
        For the control's files.

    Returns
    -------
    tuple[MethodResult, MethodResult | None]
        The method's result; the control's, None if it failed.
    """

    def record(stage: str, **values: Any) -> None:
        task.record("control", **values)

    control = task.alter(without_inversion, folder=folder, label="control: ", record=record)
    _log.info("beside it the control is trained: a student on images that are not inverted")
    with run_in_background("fedmitr", control) as result:
        return method(task), result()
