"""The per-client table and the result, as text for the log and as CSV."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from fedmitr_app.evaluation import HELD_OUT, TRAINED_ON
from fedmitr_app.report.data import ClientRow
from fedmitr_app.utils.files import write_text
from fedmitr_app.utils.text import harmless, no_formula

RESULT_NAMES = {
    "student": "student (global model)",
    "teacher": "teacher (ensemble)",
    "fedavg": "one-round FedAvg",
    "control": "initial images, not inverted (control)",
    "best client": "best single client",
}
FEDERATED_NAMES = {
    HELD_OUT: "on images that clients held out",
    TRAINED_ON: "on images that clients trained on",
}
_MOST_LINES = 20
_WIDEST = 40


def write_clients_csv(rows: Sequence[ClientRow], path: Path) -> Path:
    """Write one line per client, sorted by key; unknown numbers are empty.

    Text that a spreadsheet would take for a formula has an apostrophe before it.

    Raises
    ------
    RunFolderError
        When the file cannot be written.
    """
    names = [field.name for field in fields(ClientRow)]
    frame = pd.DataFrame([asdict(row) for row in in_order(rows)], columns=names)
    frame["num_examples"] = frame["num_examples"].astype("Int64")
    frame["node"] = frame["node"].astype("UInt64").where(frame["node"] != 0)
    for name in ("client", "status", "reason"):
        frame[name] = [no_formula(harmless(text)) for text in frame[name]]
    text = io.StringIO()
    frame.to_csv(text, index=False, lineterminator="\n")
    write_text(path, text.getvalue())
    return path


def client_table(rows: Sequence[ClientRow], most: int = _MOST_LINES) -> str:
    """Return the per-client table as aligned text, at most ``most`` clients long."""
    shown = in_order(rows)
    if len(shown) > most:
        # A client that failed matters more than one more that didn't.
        shown = in_order(sorted(shown, key=lambda row: row.status == "ok")[:most])
    lines = [[harmless(cell, _WIDEST) for cell in client_cells(row)] for row in shown]
    header = ["client", "node", "examples", "train loss", "test accuracy", "status"]
    text = aligned(header, lines, left=(0, 5))
    if len(rows) > most:
        text += f"\n... and {len(rows) - most} more in clients.csv"
    return text


def result_table(metrics: Mapping[str, Any]) -> str:
    """Return the accuracies of ``metrics["accuracy"]`` as aligned text, the student first.

    Below them, or instead where there is no test set, what the clients measured.
    """
    accuracy = metrics.get("accuracy") or {}
    student = accuracy.get("student")
    lines = []
    for key, value in named_accuracies(accuracy).items():
        gap = "" if student is None or key == "student" else f"{100 * (student - value):+.1f}"
        lines.append([RESULT_NAMES[key], percent(value), gap])
    header = ["model", "test accuracy", "student's lead"]
    if student is None:
        header, lines = header[:2], [line[:2] for line in lines]
    blocks = [aligned(header, lines, left=(0,))] if lines else []
    if federated := federated_results(metrics):
        shown = [[what, percent(value), basis] for what, value, basis in federated]
        header = ["global model, as clients say", "accuracy", "rests on"]
        blocks.append(aligned(header, shown, left=(0, 2)))
    nothing = "nothing was evaluated: there is no test set, and no client's score"
    return "\n\n".join(blocks) or nothing


def federated_results(metrics: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Return what clients measured of the global model: on what, the accuracy, what it rests on."""
    known = metrics.get("federated_evaluation") or {}
    basis = metrics.get("federated_evaluation_basis") or {}
    return [
        (words, float(known[name]), _basis(basis.get(name) or {}))
        for name, words in FEDERATED_NAMES.items()
        if known.get(name) is not None
    ]


def _basis(facts: Mapping[str, Any]) -> str:
    nodes, images = facts.get("nodes"), facts.get("images")
    of_nodes = f"{nodes} node{'s' * (nodes != 1)}" if nodes else "nodes"
    if images is None:
        return f"{of_nodes}, all counted alike"
    return f"{images} image{'s' * (images != 1)} of {of_nodes}"


def final_lines(rows: Sequence[ClientRow], metrics: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the last lines of a run's log: both tables and where everything lies."""
    blocks = [client_table(rows)] if rows else []
    blocks.append(result_table(metrics))
    lines = "\n\n".join(blocks).splitlines()
    return [*lines, "", f"run folder: {folder}", f"report: {folder / 'report.html'}"]


def named_accuracies(accuracy: Mapping[str, Any]) -> dict[str, float]:
    """Return the comparison in the order of the tables, leaving out what is unknown."""
    known = dict(accuracy)
    clients = [value for value in (accuracy.get("clients") or {}).values() if value is not None]
    if clients:
        known["best client"] = max(clients)
    return {key: float(known[key]) for key in RESULT_NAMES if known.get(key) is not None}


def in_order(rows: Sequence[ClientRow]) -> list[ClientRow]:
    """Return the rows by client key, numbers within keys counted as numbers."""
    return sorted(rows, key=lambda row: natural_key(row.client))


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a sorting key under which "client-10" comes after "client-9"."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def client_cells(row: ClientRow) -> list[str]:
    """Return a client's cells: key, node, examples, train loss, test accuracy, status."""
    return [
        harmless(row.client),
        str(row.node) if row.node else "-",
        "-" if row.num_examples is None else str(row.num_examples),
        "-" if row.train_loss is None else f"{row.train_loss:.3f}",
        "-" if row.accuracy is None else percent(row.accuracy),
        harmless(f"{row.status}: {row.reason}" if row.reason else row.status),
    ]


def percent(share: float) -> str:
    """Return a share in [0, 1] as "84.7 %"."""
    return f"{100 * share:.1f} %"


def aligned(header: list[str], lines: list[list[str]], left: Sequence[int]) -> str:
    """Return a table as text; the columns ``left`` are set left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]

    def joined(cells: list[str]) -> str:
        padded = (
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([joined(header), rule, *map(joined, lines)])
