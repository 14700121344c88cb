"""Several runs on one page: what each reached, what it took, and in which settings they differ."""

import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
_SETTINGS = "A column for each group of runs, numbered as in the figure."
_UNLIKE = ("output.", "seed")
"""Settings in which runs of one group may differ."""


@dataclass(frozen=True)
class RunSummary:
    """What a comparison reads of a run."""

    name: str
    path: str
    config: Mapping[str, str]
    """By what its settings are called; values as they stand, which may be long."""
    accuracy: Mapping[str, float]
    """By a name of ``RESULT_NAMES``, in [0, 1]; what is not known is not there."""
    seconds: float | None
    clients: int | None
    """Whose uploads were accepted."""
    test_images: int | None
    data_read: str
    commit: str

    @property
    def seed(self) -> str:
        """Its seed, as text."""
        return self.config.get("seed", "-")

    @property
    def setting(self) -> tuple[Any, ...]:
        """All in which runs of one group are the same."""
        settings = {k: v for k, v in self.config.items() if not k.startswith(_UNLIKE)}
        return (self.commit, self.data_read, self.clients, *sorted(settings.items()))


class Group(NamedTuple):
    """Runs that differ in nothing but the seed."""

    name: str
    runs: list[RunSummary]

    def accuracy(self, key: str) -> list[float]:
        """Return each run's, of those that know it."""
        return [run.accuracy[key] for run in self.runs if key in run.accuracy]


def read_runs(folders: Sequence[Path]) -> list[RunSummary]:
    """Read completed runs' folders.

    Raises
    ------
    RunFolderError
        In one sentence, if one is none, is named twice, or a file of it can't be read.
    """
    found: dict[Path, RunSummary] = {}
    for folder in folders:
        try:
            place = folder.resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise RunFolderError(f"{_named(folder)} can't be used: {reason_of(error)}.") from error
        if place in found:
            raise RunFolderError(f"{_named(folder)} is named twice: name each run once.")
        found[place] = read_run_summary(folder)
    runs = list(found.values())
    shown = [run.name for run in runs]
    # Where two folders have one name the paths tell them apart.
    return [replace(run, name=run.path) if shown.count(run.name) > 1 else run for run in runs]


def read_run_summary(folder: Path) -> RunSummary:
    """Read a completed run's folder; raises as :func:`read_runs`."""
    where = _named(folder)
    try:
        there = folder.is_dir()
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{where} can't be used: {reason_of(error)}.") from error
    if not there:
        raise RunFolderError(f"{where} is no folder: name folders of completed runs.")
    if (state := settle_status(folder)).get("state") != COMPLETED:
        raise RunFolderError(
            f"{where} can't be compared, {how_it_stands(state)}: name folders of completed runs."
        )
    config, metrics = _table(folder, "config.json"), _table(folder, "metrics.json")
    commit = _part(_table(folder, "environment.json"), "commit", "environment.json", folder)
    uploads = _part(metrics, "uploads", "metrics.json", folder)
    seconds = _part(metrics, "seconds", "metrics.json", folder)
    return RunSummary(
        name=harmless(folder.resolve().name, 60),
        path=harmless(folder),
        config={harmless(key, 60): str(value) for key, value in config.items()},
        accuracy=_accuracies(metrics.get("accuracy"), folder),
        seconds=_number(seconds, "total", folder, 1e9),
        clients=_whole(uploads, "accepted", folder),
        test_images=_whole(metrics, "test_images", folder),
        data_read=harmless(metrics.get("data_read") or ""),
        commit=harmless(str(commit.get("id") or "unknown"), 13)
        + (" and changes" if commit.get("dirty") else ""),
    )


def _named(folder: Path) -> str:
    return harmless(repr(str(folder)))


def _table(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_table(folder / name, MAX_METRICS_BYTES)
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{name} of {_named(folder)} can't be read ({reason_of(error)}): name folders of "
            "completed runs, as the runs left them."
        ) from error


def _part(table: Mapping[str, Any], key: str, file: str, folder: Path) -> Mapping[str, Any]:
    found = table.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _no_runs(folder, f"{key} in {file} is {found!r:.40}")
    return found


def _no_runs(folder: Path, what: str) -> RunFolderError:
    return RunFolderError(
        harmless(
            f"{_named(folder)} holds what no run wrote ({what}): name folders of completed runs."
        )
    )


def _number(table: Mapping[str, Any], key: str, folder: Path, most: float) -> float | None:
    value = table.get(key)
    if value is None:
        return None
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not plain or not 0 <= value <= most:
        raise _no_runs(folder, f"{key} in metrics.json is {value!r:.40}, and no number to {most:g}")
    return float(value)


def _whole(table: Mapping[str, Any], key: str, folder: Path) -> int | None:
    value = _number(table, key, folder, 1e9)
    if value is not None and value != int(value):
        raise _no_runs(folder, f"{key} in metrics.json is {value!r:.40}, and no whole number")
    return None if value is None else int(value)


def _accuracies(said: object, folder: Path) -> dict[str, float]:
    """Return the accuracies that are known, each of which must be a share."""
    if not isinstance(said, dict):
        raise _no_runs(folder, f"accuracy in metrics.json is {said!r:.40}")
    clients = _part(said, "clients", "metrics.json", folder)
    single = {key: value for key, value in said.items() if key != "clients"}
    for table in (single, clients):
        for key in table:
            _number(table, key, folder, 1)
    return named_accuracies(said)


def grouped(runs: Sequence[RunSummary]) -> list[Group]:
    """Put runs together that differ in nothing but the seed, in the order of the first ones.

    A group is called by what it has for itself.
    """
    found: dict[tuple[Any, ...], list[RunSummary]] = {}
    for run in runs:
        found.setdefault(run.setting, []).append(run)
    differ = [key for key in differing_settings(runs) if key != "seed"]
    groups = []
    for number, (first, *others) in enumerate(found.values(), 1):
        own = [f"{key}={_shown(first.config.get(key))}" for key in differ]
        own += [words for words in _beside_settings(first) if not _all_say(words, runs)]
        name = ", ".join(own[:3]) + (", ..." if len(own) > 3 else "")
        groups.append(Group(f"{number}. {name}" if name else first.name, [first, *others]))
    return groups


def _beside_settings(run: RunSummary) -> list[str]:
    clients = "an unknown number of" if run.clients is None else str(run.clients)
    return [f"{clients} clients", f"code {run.commit}", run.data_read]


def _all_say(words: str, runs: Sequence[RunSummary]) -> bool:
    return all(words in _beside_settings(run) for run in runs)


def _shown(value: str | None) -> str:
    return "-" if value is None else harmless(value, 40)


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
    for what, values in (
        ("measured on different data", [run.data_read or "no data" for run in runs]),
        ("of different numbers of clients", [str(run.clients) for run in runs]),
        ("made by different versions of the code", [run.commit for run in runs]),
    ):
        if len(different := dict.fromkeys(values)) > 1:
            some = "; ".join(list(different)[:3]) + ("; ..." if len(different) > 3 else "")
            found.append(f"The runs were {what}: {some}.")
    if any(len({run.seed for run in group.runs}) < len(group.runs) for group in grouped(runs)):
        found.append("Some runs have the same seed as another that is the same in all else.")
    return found


def write_comparison(runs: Sequence[RunSummary], path: Path) -> Path:
    """Write the page, one self-contained HTML file; an earlier comparison is replaced.

    Raises
    ------
    RunFolderError
        If it can't be written, or another file stands there.
    """
    try:
        taken = os.path.lexists(path) and f"<title>{TITLE}</title>" not in _beginning(path)
    except ValueError as error:
        raise RunFolderError(f"--output can't be {str(path)!r}: {reason_of(error)}.") from error
    if taken:
        raise RunFolderError(
            f"{_named(path)} is no comparison of runs, and stays: choose another --output."
        )
    groups = [(group.name, {k: group.accuracy(k) for k in SHOWN}) for group in grouped(runs)]
    with tempfile.TemporaryDirectory(prefix="fedmitr-") as folder:
        drawn = figures.accuracy_dots(groups, Path(folder) / "accuracy.png")
        body = _body(
            runs,
            html.figure(
                drawn, "A row for each group of runs, a dot in it for each model's accuracy"
            ),
        )
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
        html.section(
            "Runs",
            html.table(
                header,
                rows,
                numbers=range(1, len(header)),
                caption="Test accuracy of each run's models, and what it took.",
            ),
        ),
    ]
    if any(len(group.runs) > 1 for group in grouped(runs)):
        header, rows = _groups_table(runs)
        parts.append(
            html.section(
                "Over seeds",
                html.table(
                    header,
                    rows,
                    numbers=range(1, len(header)),
                    caption="Mean ± standard deviation over runs that differ in nothing but the "
                    "seed.",
                ),
            )
        )
    header, rows = _settings_table(runs)
    same = html.paragraph("None, but perhaps the seed.", "note")
    parts.append(
        html.section(
            "Settings that differ", html.table(header, rows, caption=_SETTINGS) if rows else same
        )
    )
    return parts


def _runs_table(runs: Sequence[RunSummary]) -> tuple[list[str], list[list[str]]]:
    keys = [key for key in SHOWN if any(key in run.accuracy for run in runs)]
    header = ["run", "seed", *(SHOWN[key] for key in keys), "clients", "test images", "time"]
    rows = [
        [
            run.name,
            _shown(run.seed),
            *(percent(run.accuracy[key]) if key in run.accuracy else "-" for key in keys),
            "-" if run.clients is None else str(run.clients),
            "-" if run.test_images is None else str(run.test_images),
            "-" if run.seconds is None else duration(run.seconds),
        ]
        for run in runs
    ]
    return header, rows


def _groups_table(runs: Sequence[RunSummary]) -> tuple[list[str], list[list[str]]]:
    keys = [key for key in SHOWN if any(key in run.accuracy for run in runs)]
    header = ["runs of", "number", *(SHOWN[key] for key in keys)]
    rows = [
        [group.name, str(len(group.runs)), *(_spread(group.accuracy(key)) for key in keys)]
        for group in grouped(runs)
    ]
    return header, rows


def _settings_table(runs: Sequence[RunSummary]) -> tuple[list[str], list[list[str]]]:
    """Return the settings in which groups differ: a column for each group."""
    groups = grouped(runs)
    keys = [key for key in differing_settings(runs) if key != "seed"]
    numbers = [f"{number}." for number in range(1, len(groups) + 1)]
    rows = [[key, *(_shown(group.runs[0].config.get(key)) for group in groups)] for key in keys]
    return ["setting", *numbers], rows


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
