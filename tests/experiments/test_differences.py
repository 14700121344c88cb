"""Differences between rows: paired by seed, against scipy's own paired test."""

import math

import pandas as pd
import pytest
from scipy.stats import ttest_rel

from fedmitr_app.experiments.differences import latex, markdown, paired
from fedmitr_app.experiments.federate import trained_by, uploads_name
from fedmitr_app.experiments.grid import read_grid
from fedmitr_app.experiments.tables import HEADINGS, summary, tidy
from fedmitr_app.experiments.tables import markdown as table

OURS = [0.71, 0.78, 0.66, 0.80, 0.62]
WORSE = [0.69, 0.75, 0.65, 0.77, 0.61]
ODD = [0.75, 0.70, 0.72, 0.79, 0.55]


def frame(**rows):
    """One federation's rows, by their accuracies from seed 0 on; None was not run."""
    lines = [
        {
            "row": row,
            "kind": "iid",
            "alpha": None,
            "clients": 5,
            "attack": "none",
            "attackers": 0,
            "seed": seed,
            "status": "not run: why" if value is None else "ok",
            "accuracy": value,
        }
        for row, values in rows.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(lines)


@pytest.mark.parametrize(("values", "verdict"), [(WORSE, "lower"), (ODD, "can't be told")])
def test_a_difference_is_that_of_a_paired_t_test(values, verdict):
    # What order the lines are in says nothing.
    mixed = frame(ours=OURS, other=values).sample(frac=1, random_state=0)
    (line,) = paired(mixed, ["ours"]).itertuples()
    interval = ttest_rel(values, OURS).confidence_interval(0.95)
    assert (line.against, line.row, line.seeds, line.verdict) == ("ours", "other", 5, verdict)
    assert line.difference == pytest.approx(sum(values) / 5 - sum(OURS) / 5)
    assert (line.low, line.high) == pytest.approx((interval.low, interval.high))
    assert line.standard_error == pytest.approx(line.difference / ttest_rel(values, OURS).statistic)


def test_only_seeds_that_both_have_are_paired():
    found = paired(frame(ours=OURS, other=[*WORSE[:3], None, WORSE[4]]), ["ours"])
    (line,) = found.itertuples()
    kept = [0, 1, 2, 4]
    assert line.seeds == 4 and line.verdict == "can't be told of 4 seeds"
    assert line.difference == pytest.approx(sum(WORSE[k] - OURS[k] for k in kept) / 4)
    for few in ([None] * 5, [0.7, *[None] * 4]):
        (line,) = paired(frame(ours=OURS, other=few), ["ours"]).itertuples()
        assert line.seeds == 5 - few.count(None) and math.isnan(line.standard_error)
        assert f"can't be told of {line.seeds} seed" in line.verdict


def test_every_row_is_set_against_every_reference_in_each_federation():
    both = pd.concat(
        [frame(a=OURS, b=WORSE, c=ODD), frame(a=OURS, b=ODD).assign(kind="dirichlet", alpha=0.1)]
    )
    found = paired(both, ["a", "b"])
    assert [(line.kind, line.against, line.row) for line in found.itertuples()] == [
        ("iid", "a", "b"),
        ("iid", "a", "c"),
        ("iid", "b", "a"),
        ("iid", "b", "c"),
        ("dirichlet", "a", "b"),
        ("dirichlet", "b", "a"),
    ]
    ab, ba = (found[(found["against"] == one) & (found["kind"] == "iid")].iloc[0] for one in "ab")
    assert (ab["difference"], ab["low"]) == pytest.approx((-ba["difference"], -ba["high"]))


def test_the_printed_tables_are_in_points():
    some = {"other": WORSE, "lost": [None] * 5, "one": [0.8, *[None] * 4]}
    page = markdown(frame(ours=OURS, **some), ["ours"])
    assert "**5 clients, iid: more than ours**" in page
    assert "| method | difference, points | 95 % interval | verdict | seeds |" in page
    assert "| other | -2.0 ± 0.4 | -3.2 to -0.8 | lower | 5 |" in page
    assert "| lost |  |  | can't be told of 0 seeds | 0 |" in page
    assert "| one | +9.0 |  | can't be told of 1 seed | 1 |" in page
    assert r"other & -2.0 $\pm$ 0.4 & -3.2 to -0.8 & lower & 5 \\" in latex(
        frame(ours=OURS, other=WORSE), ["ours"]
    )


# --- rows that are about other uploads

PUBLISHED = """
[axes]
seeds = [3]
[settings]
preset = "quick"
[rows.ours]
method = "fedmitr"
[rows."DENSE, as published"]
method = "dense"
settings = { teacher.combine = "mean-logits", client.label-smoothing = 0.0, client.epochs = 9 }
[rows."DENSE, our uploads"]
method = "dense"
settings = { client.share-moments = true }
"""


def test_rows_that_train_their_clients_otherwise_have_uploads_of_their_own_and_say_so(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_text(PUBLISHED)
    cells = read_grid(path).cells
    ours, published, lent = (uploads_name(cell.federation, cell.config) for cell in cells)
    assert ours == lent != published
    words = ["epochs 15, label-smoothing 0.1", "epochs 9, label-smoothing 0.0"]
    assert trained_by(cells) == [words[0], words[1], words[0]]
    assert trained_by(cells[::2]) == ["", ""]


def test_the_table_says_which_uploads_only_where_rows_differ():
    same = {"teacher": None, "steps": 0, "seconds": 2.0, "images": 0}
    alike = [{**line, **same} for line in frame(ours=OURS, other=ODD).to_dict("records")]
    assert "clients trained by" not in table(tidy(alike))
    differing = [
        {**line, "trained_by": "loss one-vs-all" if line["row"] == "ours" else "loss cross-entropy"}
        for line in alike
    ]
    page = table(tidy(differing))
    assert "| clients trained by |" in page and "| loss cross-entropy | 5 |" in page
    assert all(len(line) == len(HEADINGS) for line in summary(tidy(alike)))
