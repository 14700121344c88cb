"""The grid's results as a tidy table, and as the table that a paper prints."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from fedmitr_app.experiments.grid import Federation

COLUMNS = (
    "row",
    "method",
    "kind",
    "alpha",
    "clients",
    "seed",
    "status",
    "accuracy",
    "teacher",
    "seconds",
    "images",
    "steps",
    "test_images",
    "best_client",
    "split",
    "device",
    "code",
)
HEADINGS = (
    "method",
    "accuracy, %",
    "its teacher, %",
    "student / teacher, %",
    "server seconds",
    "images",
    "steps",
    "seeds",
)


def tidy(results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one line per cell; accuracies are shares of 1."""
    frame = pd.DataFrame([_flat(result) for result in results])
    rest = [name for name in frame.columns if name not in COLUMNS]
    return frame.reindex(columns=[*COLUMNS, *rest])


def groups(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the lines of each federation, all seeds together, by its description."""
    keys = ["kind", "alpha", "clients"]
    return {
        Federation(kind, None if pd.isna(alpha) else alpha, clients, seed=0).group: part
        for (kind, alpha, clients), part in frame.groupby(keys, sort=False, dropna=False)
    }


def summary(frame: pd.DataFrame) -> list[list[str]]:
    """Return the cells of a printed table, one line per row in the experiment's order.

    Means ± standard deviations over the seeds, in percent; a row that was not run says why.
    """
    lines = []
    for name, part in frame.groupby("row", sort=False):
        good = part[part["status"] == "ok"]
        if good.empty:
            lines.append([str(name), str(part["status"].iloc[0]), *[""] * (len(HEADINGS) - 2)])
            continue
        students = good["teacher"].notna() & (good["steps"] > 0)
        ratio = (good["accuracy"] / good["teacher"])[students]
        lines.append(
            [
                str(name),
                _spread(100 * good["accuracy"]),
                _spread(100 * good["teacher"].dropna().astype(float)),
                _spread(100 * ratio.astype(float)),
                f"{good['seconds'].mean():.0f}" if good["seconds"].mean() >= 1 else "< 1",
                f"{good['images'].mean():.0f}",
                f"{good['steps'].mean():.0f}",
                f"{len(good)}" if len(good) == len(part) else f"{len(good)} of {len(part)}",
            ]
        )
    return lines


def markdown(frame: pd.DataFrame) -> str:
    """Return a table for each kind of federation, as Markdown."""
    parts = []
    for group, part in groups(frame).items():
        lines = [HEADINGS, ["---"] * len(HEADINGS), *summary(part)]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"**{group}**\n\n{table}\n")
    return "\n".join(parts)


def latex(frame: pd.DataFrame) -> str:
    """Return the same as LaTeX ``tabular``s."""
    parts = []
    for group, part in groups(frame).items():
        lines = [" & ".join(map(_escape, line)) + r" \\" for line in summary(part)]
        head = " & ".join(map(_escape, HEADINGS)) + r" \\"
        parts.append(
            "\n".join(
                [
                    f"% {group}",
                    rf"\begin{{tabular}}{{l{'r' * (len(HEADINGS) - 1)}}}",
                    r"\hline",
                    head,
                    r"\hline",
                    *lines,
                    r"\hline",
                    r"\end{tabular}",
                    "",
                ]
            )
        )
    return "\n".join(parts)


def _flat(result: Mapping[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in result.items() if key != "clients_accuracy"}
    accuracies = result.get("clients_accuracy")
    return {**flat, "best_client": max(accuracies.values()) if accuracies else None}


def _spread(values: pd.Series) -> str:
    if values.empty:
        return ""
    if len(values) == 1:
        return f"{values.iloc[0]:.1f}"
    return f"{values.mean():.1f} ± {values.std():.1f}"


def _escape(text: str) -> str:
    for plain, escaped in (("%", r"\%"), ("±", r"$\pm$"), ("α", r"$\alpha$"), ("_", r"\_")):
        text = text.replace(plain, escaped)
    return text.replace("&", r"\&").replace("< ", "$<$ ")
