"""Tables for the log, and the CSV."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from fedmitr_app.report.data import ClientRow
from fedmitr_app.report.tables import (
    client_table,
    final_lines,
    result_table,
    write_clients_csv,
)
from tests.helpers.made_up_run import make_data


def test_the_client_table_is_aligned_and_in_natural_order() -> None:
    rows = [
        ClientRow("client-10", 5, 1.25, 0.9, 0.5, node=12),
        ClientRow("client-9", None, status="rejected", reason="its weights\nhold NaN"),
    ]
    assert client_table(rows).splitlines() == [
        "client     node  examples  train loss  test accuracy  status",
        "---------  ----  --------  ----------  -------------  ------------------------------",
        "client-9      -         -           -              -  rejected: its weights hold NaN",
        "client-10    12         5       1.250         50.0 %  ok",
    ]


def test_many_clients_are_cut_but_never_the_ones_in_trouble() -> None:
    rows = [ClientRow(f"client-{index}", 10) for index in range(99)]
    rows.append(ClientRow("client-99", status="failed", reason="out of memory"))
    lines = client_table(rows, most=5).splitlines()
    assert len(lines) == 2 + 5 + 1
    assert lines[-2].endswith("failed: out of memory")
    assert lines[-1] == "... and 95 more in clients.csv"


def test_the_result_table_says_what_the_student_gains() -> None:
    lines = [line.split() for line in result_table(make_data().metrics).splitlines()]
    assert [line[-1] for line in lines[3:]] == ["-3.4", "+55.5", "+5.4", "+57.0"]
    assert lines[2][-2:] == ["85.0", "%"]


def test_the_result_table_without_a_student_or_a_test_set() -> None:
    assert "lead" not in result_table({"accuracy": {"fedavg": 0.5}})
    assert result_table({}) == "nothing was evaluated: there is no test set, and no client's score"
    assert result_table({"accuracy": {"student": None}}).startswith("nothing was evaluated")


def test_what_clients_measured_stands_below_or_instead() -> None:
    score = {
        "federated_evaluation": {"accuracy-on-hold-out": 0.83},
        "federated_evaluation_basis": {"accuracy-on-hold-out": {"nodes": 3, "images": 60}},
    }
    assert result_table(score).splitlines() == [
        "global model, as clients say     accuracy  rests on",
        "-------------------------------  --------  --------------------",
        "on images that clients held out    83.0 %  60 images of 3 nodes",
    ]
    both = result_table({**make_data().metrics, **score})
    assert both.startswith(result_table(make_data().metrics)) and both.endswith(result_table(score))
    lines = final_lines([], score, Path("/runs/one"))
    assert "60 images of 3 nodes" in lines[2] and lines[-1] == "report: /runs/one/report.html"


def test_the_last_lines_are_the_table_and_the_path() -> None:
    data = make_data()
    lines = final_lines(data.clients, data.metrics, Path("/runs/one"))
    assert lines[-2:] == ["run folder: /runs/one", "report: /runs/one/report.html"]
    assert any(line.startswith("student") for line in lines)
    assert all("\n" not in line for line in lines)


def test_the_csv_reads_back(tmp_path: Path) -> None:
    rows = [
        ClientRow('b,"\n', 3, 0.5, None, 0.25, node=2**64 - 1),
        ClientRow("a", None, status="rejected", reason="it, said"),
    ]
    path = write_clients_csv(rows, tmp_path / "clients.csv")
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["client"] for row in read] == ["a", 'b,"']
    assert read[0]["reason"] == "it, said"
    assert read[0]["num_examples"] == ""
    assert read[1]["num_examples"] == "3"
    assert read[1]["accuracy"] == "0.25"
    assert [row["node"] for row in read] == ["", str(2**64 - 1)]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-2", "'-2"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'=1"),
        ("\r=1", "'=1"),
        ("=\u202ecod", "'=?cod"),
        ("a=1", "a=1"),
    ],
)
def test_no_cell_is_a_formula(tmp_path: Path, text: str, cell: str) -> None:
    row = ClientRow(text, 3, -0.5, status="rejected", reason=text)
    frame = pd.read_csv(write_clients_csv([row], tmp_path / "clients.csv"))
    assert frame[["client", "reason"]].values.tolist() == [[cell, cell]]
    assert frame["train_loss"].tolist() == [-0.5]  # a number is one, and no text


def test_a_csv_of_nobody_has_its_header(tmp_path: Path) -> None:
    path = write_clients_csv([], tmp_path / "clients.csv")
    assert path.read_text().startswith("client,num_examples,")
