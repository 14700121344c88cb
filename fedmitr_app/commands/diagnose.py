"""``fedmitr diagnose RUN_DIR``: the theory's claims on a finished run."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmitr_app.diagnostics.claims import verdicts
from fedmitr_app.diagnostics.diagnose import Sizes, diagnose, distil_dense
from fedmitr_app.diagnostics.finished import read_run
from fedmitr_app.errors import ConfigError, RunFolderError
from fedmitr_app.report.diagnosis import add_to_report, diagnosis_tables
from fedmitr_app.report.tables import aligned
from fedmitr_app.utils.files import as_json, reason_of, write_json
from fedmitr_app.utils.reading import read_table

MAX_METRICS_BYTES = 2**24


def main(arguments: Sequence[str]) -> int:
    """Run the command; raises ``FedmitrError`` for a user's mistake."""
    asked = _parser().parse_args(arguments)
    found = diagnosis_of(asked.run_dir, asked.device, asked.dense, _sizes(asked))
    for words in _told(found):
        print(words)
    _keep(asked.run_dir, found)
    print(f"\ndiagnosis: {asked.run_dir / 'diagnosis.json'}, and in report.html")
    return 0


def diagnosis_of(folder: Path, device: str, dense: bool, sizes: Sizes) -> dict[str, Any]:
    """Diagnose a run folder: a diagnosis with its judged ``claims``, as JSON holds it."""
    run = read_run(folder, device, dense)
    other = distil_dense(run.task) if dense else None
    diagnosis = diagnose(run.task, run.student, other, run.test, sizes)
    judged = [verdict._asdict() for verdict in verdicts(diagnosis)]
    found: dict[str, Any] = as_json({**diagnosis.to_dict(), "claims": judged})
    return found


def _keep(folder: Path, found: Mapping[str, Any]) -> None:
    """Write ``diagnosis.json``, and the same into ``metrics.json`` and the report."""
    write_json(folder / "diagnosis.json", found)
    path = folder / "metrics.json"
    try:
        metrics = {**read_table(path, MAX_METRICS_BYTES), "diagnosis": found}
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} cannot be read: {reason_of(error)}; the diagnosis is in diagnosis.json only."
        ) from error
    write_json(path, metrics)
    add_to_report(folder / "report.html", metrics)


def _told(found: Mapping[str, Any]) -> list[str]:
    tables = [aligned(header, rows, left=(0,)) + "\n" for header, rows in diagnosis_tables(found)]
    return [*tables, *(claim["sentence"] for claim in found["claims"])]


def _sizes(asked: argparse.Namespace) -> Sizes:
    for name in ("images", "batches"):
        if getattr(asked, name) < 2:  # of fewer there is no variance
            raise ConfigError.bad_value(
                f"--{name}", getattr(asked, name), "a whole number of at least 2"
            )
    return Sizes(inverted=asked.images, curved=asked.images, batches=asked.batches)


def _parser() -> argparse.ArgumentParser:
    usual = Sizes()
    parser = argparse.ArgumentParser(
        prog="fedmitr diagnose",
        description="Measure the paper's theory claims on a finished run.",
    )
    parser.add_argument("run_dir", type=Path, help="folder of a completed run")
    parser.add_argument(
        "--dense",
        action="store_true",
        help="also distil a student by dense inversion and compare (as long as the run's own)",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=usual.inverted,
        help="images inverted for the gradients, and whose loss's curvature is sought "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--batches",
        type=int,
        default=usual.batches,
        help="batches over which the student's gradient varies (default %(default)s)",
    )
    parser.add_argument(
        "--device", default="auto", help="'auto', 'cpu', 'cuda' or 'cuda:N' (default %(default)s)"
    )
    return parser
