"""What a model's 'auto' settings come to, once for all experiments of a folder of results."""

from dataclasses import astuple, replace
from pathlib import Path

import torch

from fedmitr_app.config import Config, ModelConfig
from fedmitr_app.experiments.grid import Cell, Grid
from fedmitr_app.models import (
    InputSpec,
    build_vit,
    resolve_auto,
    settings_of,
    undecided,
    without_auto,
)
from fedmitr_app.utils.files import write_json
from fedmitr_app.utils.reading import read_table


def with_auto_resolved(grid: Grid, path: Path, device: torch.device) -> Grid:
    """Return the grid with nothing left 'auto' in its cells.

    Parameters
    ----------
    path : Path
        Of a JSON that is read, and written if something is decided only now: each kind of model,
        as asked for, with what came of it. Whoever goes on there, on whatever machine, follows it.
    device : torch.device
        Where it is measured.
    """
    open_ones = {_kind(cell, device): cell.config for cell in grid.cells if _open(cell)}
    if not open_ones:
        return grid
    try:
        known = read_table(path)
    except (OSError, ValueError):  # not there, or damaged: measured anew
        known = {}
    chosen = {kind: _chosen(config, known.get(kind), device) for kind, config in open_ones.items()}
    write_json(path, {**known, **{kind: settings_of(each) for kind, each in chosen.items()}})
    return replace(
        grid,
        cells=tuple(
            _told(cell, chosen[_kind(cell, device)]) if _open(cell) else cell for cell in grid.cells
        ),
    )


def _open(cell: Cell) -> bool:
    return undecided(cell.config.model)


def _kind(cell: Cell, device: torch.device) -> str:
    """Name all that a measurement depends on, but for the machine."""
    asked = replace(cell.config.model, weights="")
    words = " ".join(str(part) for part in astuple(asked) if part != "")
    return f"{words} at {cell.config.data.image_size} px on {device.type}"


def _chosen(config: Config, known: object, device: torch.device) -> ModelConfig:
    asked = replace(config.model, weights="")  # their values change no time
    model = build_vit(without_auto(asked), InputSpec.of(config.data), 2, config.seed)
    return resolve_auto(asked, model, device, known if isinstance(known, dict) else None)


def _told(cell: Cell, chosen: ModelConfig) -> Cell:
    model = replace(cell.config.model, precision=chosen.precision, matmul=chosen.matmul)
    return replace(cell, config=replace(cell.config, model=model))
