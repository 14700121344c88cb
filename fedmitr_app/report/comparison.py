"""Several runs on one page: what each reached, what it took, and in which settings they differ."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedmitr_app.config import default_run_config
from fedmitr_app.errors import RunFolderError
from fedmitr_app.report import figures, html
from fedmitr_app.report.tables import aligned, named_accuracies, percent
from fedmitr_app.run_folder.status import COMPLETED, how_it_stands, settle_status
from fedmitr_app.utils.files import reason_of, write_text
from fedmitr_app.utils.progress import duration
from fedmitr_app.utils.reading import read_table, read_text
from fedmitr_app.utils.text import harmless

TITLE = "Comparison of runs"
MAX_METRICS_BYTES = 2**24
"""Of ``metrics.json``, which has a line for each client."""
SHOWN = {
    "student": "student",
    "teacher": "teacher",
    "fedavg": "FedAvg",
    "control": "control",
    "best client": "best client",
}
"""By the names of ``RESULT_NAMES``: columns."""
_UNLIKE = ("output.", "seed")
"""Settings in which runs of one group may differ."""


@dataclass(frozen=True)
class RunSummary:
    """What a comparison reads of a run."""

    name: str
    config: Mapping[str, Any]
    accuracy: Mapping[str, float]
    """By a name of ``RESULT_NAMES``, in [0, 1]; what is not known is not there."""
    seconds: float | None
    clients: int | None
    """Whose uploads were accepted."""
    data_read: str
    commit: str

    @property
    def seed(self) -> str:
        """Its seed, as text."""
        return str(self.config.get("seed", "-"))


class Group(NamedTuple):
    """Runs whose settings differ in nothing but the seed."""

    name: str
    runs: list[RunSummary]

    def accuracy(self, key: str) -> list[float]:
        """Return each run's, of those that know it."""
        return [run.accuracy[key] for run in self.runs if key in run.accuracy]


def read_finished(folder: Path) -> RunSummary:
    """Read a completed run's folder.

    Raises
    ------
    RunFolderError
        In one sentence, if it is none or a file of it can't be read.
    """
    where = f"{str(folder)!r}"
    if not folder.is_dir():
        raise RunFolderError(f"{where} is no folder: name folders of completed runs.")
    if (state := settle_status(folder)).get("state") != COMPLETED:
        raise RunFolderError(
            f"{where} can't be compared, {how_it_stands(state)}: name folders of completed runs."
        )
    try:
        config = read_table(folder / "config.json")
        metrics = read_table(folder / "metrics.json", MAX_METRICS_BYTES)
        environment = read_table(folder / "environment.json")
        accuracy = named_accuracies(metrics["accuracy"])
        if not all(0 <= share <= 1 for share in accuracy.values()):
            raise ValueError("metrics.json holds accuracies that are none")
        uploads, seconds = metrics.get("uploads") or {}, metrics.get("seconds") or {}
        commit = environment.get("commit") or {}
        return RunSummary(
            name=harmless(folder.resolve().name),
            config={key: harmless(value) for key, value in config.items()},
            accuracy=accuracy,
            seconds=None if seconds.get("total") is None else float(seconds["total"]),
            clients=None if uploads.get("accepted") is None else int(uploads["accepted"]),
            data_read=harmless(metrics.get("data_read") or ""),
            commit=harmless(str(commit.get("id") or "unknown"))[:12]
            + (" and changes" if commit.get("dirty") else ""),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{where} holds a file that can't be read ({reason_of(error)}): name folders of "
            "completed runs, as the runs left them."
        ) from error


def grouped(runs: Sequence[RunSummary]) -> list[Group]:
    """Put runs together that differ in nothing but the seed, in the order of the first ones.

    A group is called by the settings that it has for itself.
    """
    found: dict[tuple[Any, ...], list[RunSummary]] = {}
    for run in runs:
        settings = {k: v for k, v in run.config.items() if not k.startswith(_UNLIKE)}
        found.setdefault((run.commit, run.data_read, *sorted(settings.items())), []).append(run)
    differ = differing_settings(runs)
    groups = []
    for number, members in enumerate(found.values(), 1):
        own = [f"{key}={members[0].config.get(key, '-')}" for key in differ if key != "seed"]
        name = ", ".join(own[:3]) + (", ..." if len(own) > 3 else "")
        groups.append(Group(f"{number}. {name or members[0].name}", members))
    return groups


def differing_settings(runs: Sequence[RunSummary]) -> list[str]:
    """Return the keys of the settings in which runs differ, in the schema's order."""
    order = list(default_run_config())
    keys = {key for run in runs for key in run.config if not key.startswith("output.")}
    differ = [key for key in keys if len({run.config.get(key) for run in runs}) > 1]
    return sorted(differ, key=lambda key: (order.index(key) if key in order else len(order), key))


def comparison_text(runs: Sequence[RunSummary]) -> str:
    """Return the page's tables as aligned text."""
    blocks = [aligned(*_runs_table(runs), left=(0,))]
    if any(len(group.runs) > 1 for group in grouped(runs)):
        blocks.append(aligned(*_groups_table(runs), left=(0,)))
    header, rows = _settings_table(runs)
    if rows:
        blocks.append(aligned(header, rows, left=tuple(range(len(header)))))
    return "\n\n".join([*blocks, *warnings(runs)])


def warnings(runs: Sequence[RunSummary]) -> list[str]:
    """Say what makes the runs' numbers hard to compare."""
    found = []
    if len({run.data_read for run in runs}) > 1:
        found.append("The runs were measured on different data.")
    if len({run.clients for run in runs}) > 1:
        found.append("The runs have different numbers of clients.")
    if len({run.commit for run in runs}) > 1:
        found.append("The runs were made by different versions of the code.")
    return found


def write_comparison(runs: Sequence[RunSummary], path: Path) -> Path:
    """Write the page, one self-contained HTML file; an earlier comparison is replaced.

    Raises
    ------
    RunFolderError
        If it can't be written, or another file stands there.
    """
    if path.exists() and f"<title>{TITLE}</title>" not in _beginning(path):
        raise RunFolderError(
            f"{str(path)!r} is no comparison of runs, and stays: choose another --output."
        )
    figure = path.with_name(f".{path.name}.png")
    try:
        drawn = figures.accuracy_dots(
            [(group.name, {key: group.accuracy(key) for key in SHOWN}) for group in grouped(runs)],
            figure,
        )
        body = _body(runs, html.figure(drawn, "Test accuracy of each run's models"))
    finally:
        figure.unlink(missing_ok=True)
    write_text(path, html.page(TITLE, body))
    return path


def _body(runs: Sequence[RunSummary], figure: str) -> list[str]:
    header, rows = _runs_table(runs)
    parts = [
        f"<header><h1>{TITLE}</h1>{''.join(html.paragraph(w, 'warning') for w in warnings(runs))}"
        "</header>",
        html.section(
            "Accuracy",
            figure,
            html.paragraph(
                "On each run's held-out test images, after the last step. A dot is a run, the "
                "line through several their mean. The control learns from initial images that "
                "nobody inverted.",
                "note",
            ),
        ),
        html.section("Runs", html.table(header, rows, numbers=range(1, len(header)))),
    ]
    if any(len(group.runs) > 1 for group in grouped(runs)):
        header, rows = _groups_table(runs)
        note = "Mean ± standard deviation over runs that differ in nothing but the seed."
        parts.append(
            html.section(
                "Over seeds",
                html.table(header, rows, numbers=range(1, len(header))),
                html.paragraph(note, "note"),
            )
        )
    header, rows = _settings_table(runs)
    same = html.paragraph("None: all settings are the same.", "note")
    parts.append(html.section("Settings that differ", html.table(header, rows) if rows else same))
    return parts


def _runs_table(runs: Sequence[RunSummary]) -> tuple[list[str], list[list[str]]]:
    keys = [key for key in SHOWN if any(key in run.accuracy for run in runs)]
    header = ["run", "seed", *(SHOWN[key] for key in keys), "clients", "time"]
    rows = [
        [
            run.name,
            run.seed,
            *(percent(run.accuracy[key]) if key in run.accuracy else "-" for key in keys),
            "-" if run.clients is None else str(run.clients),
            "-" if run.seconds is None else duration(run.seconds),
        ]
        for run in runs
    ]
    return header, rows


def _groups_table(runs: Sequence[RunSummary]) -> tuple[list[str], list[list[str]]]:
    keys = [key for key in SHOWN if any(key in run.accuracy for run in runs)]
    header = ["settings", "runs", *(SHOWN[key] for key in keys)]
    rows = [
        [group.name, str(len(group.runs)), *(_spread(group.accuracy(key)) for key in keys)]
        for group in grouped(runs)
    ]
    return header, rows


def _settings_table(runs: Sequence[RunSummary]) -> tuple[list[str], list[list[str]]]:
    keys = differing_settings(runs)
    rows = [[key, *(str(run.config.get(key, "-")) for run in runs)] for key in keys]
    return ["setting", *(run.name for run in runs)], rows


def _spread(shares: Sequence[float]) -> str:
    if not shares:
        return "-"
    points = [100 * share for share in shares]
    spread = f" ± {statistics.stdev(points):.1f}" if len(points) > 1 else ""
    return f"{statistics.mean(points):.1f}{spread} %"


def _beginning(path: Path) -> str:
    try:
        return read_text(path, 2**28)[:20000]
    except (OSError, ValueError):
        return ""
