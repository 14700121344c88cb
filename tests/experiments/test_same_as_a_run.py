"""What an experiment says of a method is what a run of the app would have given."""

import torch

from fedmitr_app.config import parse_config
from fedmitr_app.experiments.federate import uploads_name
from fedmitr_app.experiments.grid import Cell, Grid, Row
from fedmitr_app.experiments.grid import Federation as Dealt
from fedmitr_app.experiments.run import run_grid
from fedmitr_app.uploads import read_spool
from tests.helpers.federation import Federation, without_processes


def test_a_cell_gives_what_a_run_gives_to_the_last_bit(tmp_path, monkeypatch):
    without_processes(monkeypatch.setattr)
    federation = Federation(tmp_path / "run")
    ran = federation.run()["accuracy"]
    config = parse_config(federation.given())
    dealt = Dealt(config.partition.kind, config.partition.alpha, federation.clients, config.seed)
    rows = [Row("ours", "fedmitr", {}), Row("average", "fedavg", {})]
    grid = Grid("both", tuple(Cell(row, dealt, config) for row in rows))
    ours, average = run_grid(grid, tmp_path / "grid", device=torch.device("cpu"))
    assert (ours["accuracy"], ours["teacher"]) == (ran["student"], ran["teacher"])
    assert average["accuracy"] == ran["fedavg"]
    spooled = tmp_path / "grid" / "uploads" / uploads_name(dealt, config)
    there, here = read_spool(tmp_path / "run" / "uploads"), read_spool(spooled)
    assert [upload.digest for upload in there] == [upload.digest for upload in here]
