"""Each row's difference to a reference row, paired by federation and seed.

Rows of one federation and seed share uploads, test images and θ₀, so that their difference is
known far better than either accuracy, whose spread over seeds is mostly the partition's.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from fedmitr_app.diagnostics.error_bars import Error
from fedmitr_app.experiments.tables import as_latex, as_markdown, groups

FEWEST_SEEDS = 5
"""Of fewer a standard error is itself hardly known (choice)."""
COLUMNS = (
    "kind",
    "alpha",
    "clients",
    "attack",
    "attackers",
    "against",
    "row",
    "seeds",
    "difference",
    "standard_error",
    "low",
    "high",
    "verdict",
)
HEADINGS = ("method", "difference, points", "95 % interval", "verdict", "seeds")
_FEDERATION = list(COLUMNS[:5])


def paired(frame: pd.DataFrame, against: Sequence[str]) -> pd.DataFrame:
    """Return one line for each federation, reference and other row.

    ``difference`` is the mean over the seeds that both have of row minus reference, as shares of
    1; ``standard_error`` the deviation of those differences over the root of their number;
    ``low`` to ``high`` the interval that Student's t gives at 95 %. Of one seed there is no
    error. ``verdict`` says which is higher: nothing if the interval holds 0, and nothing of fewer
    than five seeds.

    Parameters
    ----------
    frame : DataFrame
        As :func:`fedmitr_app.experiments.tables.tidy` returns it.
    against : Sequence[str]
        Names of reference rows.
    """
    lines = []
    for federation, part in frame.groupby(_FEDERATION, sort=False, dropna=False):
        good = part[part["status"] == "ok"]
        by_seed = good.pivot(index="seed", columns="row", values="accuracy").astype(float)
        for reference in against:
            for row in dict.fromkeys(part["row"]):
                if row == reference:
                    continue
                both = by_seed.reindex(columns=[row, reference]).dropna()
                found = _summed_up(both[row] - both[reference])
                lines.append([*federation, reference, row, *found])
    return pd.DataFrame(lines, columns=COLUMNS)


def _summed_up(differences: pd.Series) -> tuple[int, float, float, float, float, str]:
    """Return number, mean, standard error, both ends of the interval, and what that tells."""
    count = len(differences)
    mean = float(differences.mean()) if count else math.nan
    if count < 2:
        return count, mean, math.nan, math.nan, math.nan, _too_few(count)
    error = float(differences.std()) / math.sqrt(count)
    half = Error(error, count).half_width
    low, high = mean - half, mean + half
    if count < FEWEST_SEEDS:
        verdict = _too_few(count)
    else:
        verdict = "higher" if low > 0 else "lower" if high < 0 else "can't be told"
    return count, mean, error, low, high, verdict


def _too_few(count: int) -> str:
    return f"can't be told of {count} seed{'' if count == 1 else 's'}"


def markdown(frame: pd.DataFrame, against: Sequence[str]) -> str:
    """Return a table for each kind of federation, attack and reference, as Markdown."""
    return "\n".join(
        f"**{title}**\n\n{as_markdown(HEADINGS, lines)}"
        for title, lines in _printed(paired(frame, against))
    )


def latex(frame: pd.DataFrame, against: Sequence[str]) -> str:
    """Return the same as LaTeX ``tabular``s."""
    tables = _printed(paired(frame, against))
    return "\n".join(as_latex(title, HEADINGS, lines) for title, lines in tables)


def _printed(lines: pd.DataFrame) -> list[tuple[str, list[list[str]]]]:
    """Return each table's title and cells, in points of a hundred."""
    tables = []
    for group, part in groups(lines).items():
        for (attack, attackers, reference), one in part.groupby(
            ["attack", "attackers", "against"], sort=False
        ):
            attacked = f", {attack} by {attackers}" if attackers else ""
            title = f"{group}{attacked}: more than {reference}"
            tables.append((title, [_line(line) for line in one.itertuples()]))
    return tables


def _line(line: Any) -> list[str]:
    if not line.seeds:
        return [line.row, "", "", line.verdict, "0"]
    mean = f"{100 * line.difference:+.1f}"
    if math.isnan(line.standard_error):
        return [line.row, mean, "", line.verdict, str(line.seeds)]
    return [
        line.row,
        f"{mean} ± {100 * line.standard_error:.1f}",
        f"{100 * line.low:+.1f} to {100 * line.high:+.1f}",
        line.verdict,
        str(line.seeds),
    ]
