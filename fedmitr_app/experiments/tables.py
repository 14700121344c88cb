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
    "attack",
    "attackers",
    "seed",
    "status",
    "accuracy",
    "teacher",
    "seconds",
    "images",
    "steps",
    "test_images",
    "best_client",
    "clients_accuracy",
    "beside_weights",
    "trained_by",
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
    "beside weights",
    "clients trained by",
    "seeds",
)
TRAINED_BY = HEADINGS.index("clients trained by")
_IN_LATEX = str.maketrans(
    {
        **{mark: f"\\{mark}" for mark in "%&_#${}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"±": r"$\pm$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "τ": r"$\tau$"},
        **{"<": "$<$", ">": "$>$", "θ": r"$\theta$", "₀": "$_0$"},
    }
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
    """Return the cells of a printed table under ``HEADINGS``, one line per row in order.

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
                _steps(good),
                str(good["beside_weights"].iloc[0]),
                str(good["trained_by"].iloc[0]),
                _seeds(part),
            ]
        )
    return lines


def by_attack(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of accuracies in percent: a line per attack, a column per row."""
    rows = list(dict.fromkeys(frame["row"]))
    lines = []
    for name, part in attacks(frame).items():
        line = [name]
        for row in rows:
            cells = part[part["row"] == row]
            good = cells[cells["status"] == "ok"]
            some = "" if len(good) == len(cells) else f" ({_seeds(cells)})"
            line.append((_spread(100 * good["accuracy"]) or str(cells["status"].iloc[0])) + some)
        lines.append(line)
    return ["attack", *rows], lines


def attacks(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the lines under each attack, by its description."""
    return {
        f"{attack} by {attackers}" if attackers else "no attack": part
        for (attack, attackers), part in frame.groupby(["attack", "attackers"], sort=False)
    }


def markdown(frame: pd.DataFrame) -> str:
    """Return a table for each kind of federation, as Markdown."""
    parts = []
    for group, part in groups(frame).items():
        headings, lines = _table(part)
        parts.append(f"**{group}**\n\n{as_markdown(headings, lines)}{_each_client(part)}")
    return "\n".join(parts)


def as_markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return cells as one table in Markdown."""
    shown = [[_on_one_line(cell) for cell in line] for line in (headings, *lines)]
    shown.insert(1, ["---"] * len(headings))
    return "".join("| " + " | ".join(line) + " |\n" for line in shown)


def latex(frame: pd.DataFrame) -> str:
    """Return the same as LaTeX ``tabular``s."""
    return "\n".join(as_latex(group, *_table(part)) for group, part in groups(frame).items())


def as_latex(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return cells as one ``tabular``, its title as a comment."""
    head, *rest = [" & ".join(map(_escape, line)) + r" \\" for line in (headings, *lines)]
    return "\n".join(
        [
            f"% {title}",
            rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
            r"\hline",
            head,
            r"\hline",
            *rest,
            r"\hline",
            r"\end{tabular}",
            "",
        ]
    )


def _table(part: pd.DataFrame) -> tuple[Sequence[str], list[list[str]]]:
    """Return headings and cells; how clients are trained only where rows differ in that."""
    if part["attackers"].any():
        return by_attack(part)
    headings, lines = HEADINGS, summary(part)
    if part["trained_by"].any():
        return headings, lines
    return _without(headings), [_without(line) for line in lines]


def _without(line: Sequence[str]) -> list[str]:
    return [cell for place, cell in enumerate(line) if place != TRAINED_BY]


def _flat(result: Mapping[str, Any]) -> dict[str, Any]:
    accuracies = result.get("clients_accuracy")
    each = " / ".join(f"{100 * value:.1f}" for value in accuracies.values()) if accuracies else None
    best = max(accuracies.values()) if accuracies else None
    usual = {"beside_weights": "", "trained_by": ""}
    return {**usual, **result, "clients_accuracy": each, "best_client": best}


def _each_client(part: pd.DataFrame) -> str:
    """Say what each client alone has, where a row measured it."""
    known = part.dropna(subset=["clients_accuracy"]).drop_duplicates("seed")
    if known.empty:
        return ""
    seeds = zip(known["seed"], known["clients_accuracy"], strict=True)
    told = "; ".join(f"{each} (seed {seed})" for seed, each in seeds)
    return f"\nEach client alone, %: {told}.\n"


def _steps(good: pd.DataFrame) -> str:
    """Say how many steps the students took, and how often their start was better."""
    steps = f"{good['steps'].mean():.0f}"
    kept = sum(value is True for value in good.get("start_returned", ()))
    return f"{steps} (start returned: {kept} of {len(good)})" if kept else steps


def _seeds(part: pd.DataFrame) -> str:
    """Count the seeds that have a figure; say why another one has none."""
    bad = part[part["status"] != "ok"]
    if bad.empty:
        return str(len(part))
    seed, why = bad["seed"].iloc[0], bad["status"].iloc[0]
    return f"{len(part) - len(bad)} of {len(part)} (seed {seed}: {why})"


def _spread(values: pd.Series) -> str:
    if values.empty:
        return ""
    if len(values) == 1:
        return f"{values.iloc[0]:.1f}"
    return f"{values.mean():.1f} ± {values.std():.1f}"


def _on_one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _escape(text: str) -> str:
    return " ".join(text.split()).translate(_IN_LATEX)
