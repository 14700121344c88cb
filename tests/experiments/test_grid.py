"""Experiment files: what they mean, and one sentence for each way to get them wrong."""

import pytest

from fedmitr_app.errors import ConfigError
from fedmitr_app.experiments.cell import cell_name
from fedmitr_app.experiments.federate import uploads_name
from fedmitr_app.experiments.grid import read_grid

PLAIN = """
title = "two methods"
[axes]
seeds = [3, 4]
alpha = [0.1, 1]
[settings]
preset = "quick"
client.epochs = 2
[rows."ours"]
method = "fedmitr"
settings = { inversion.schedule = "dense" }
[rows.fedavg]
"""


def grid(tmp_path, text=PLAIN, **overrides):
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return read_grid(path, overrides)


def test_every_row_meets_every_federation(tmp_path):
    found = grid(tmp_path)
    assert found.title == "two methods"
    cells = [(c.row.name, c.row.method, c.federation.alpha, c.federation.seed) for c in found.cells]
    assert cells == [
        (name, method, alpha, seed)
        for seed in (3, 4)
        for alpha in (0.1, 1.0)
        for name, method in (("ours", "fedmitr"), ("fedavg", "fedavg"))
    ]
    for cell in found.cells:
        assert (cell.config.seed, cell.config.client.epochs) == (cell.federation.seed, 2)
        assert cell.config.partition.alpha == cell.federation.alpha
        dense = cell.config.inversion.schedule == "dense"
        assert dense == (cell.row.name == "ours")


def test_rows_are_set_against_the_first_of_fedmitr_unless_the_file_says(tmp_path):
    assert grid(tmp_path).against == ("ours",)
    assert grid(tmp_path, PLAIN + "[table]\nagainst = ['fedavg', 'ours']").against == (
        "fedavg",
        "ours",
    )
    assert grid(tmp_path, "[rows.fedavg]").against == ()


def test_what_is_given_wins_over_the_preset_and_the_command_line_over_the_file(tmp_path):
    # The default number of epochs, which the preset replaces unless it is given.
    text = PLAIN.replace("client.epochs = 2", "client.epochs = 30")
    assert {c.config.client.epochs for c in grid(tmp_path, text).cells} == {30}
    found = grid(tmp_path, **{"client.epochs": 7})
    assert {c.config.client.epochs for c in found.cells} == {7}


def test_without_axes_the_settings_own_kind_and_alpha_count(tmp_path):
    text = "[settings]\npreset = 'office-home-deit-tiny'\n[axes]\nclients = [4]\n[rows.fedavg]"
    (*_, cell) = grid(tmp_path, text).cells
    assert (cell.federation.kind, cell.federation.alpha) == ("natural", None)
    (cell, *_) = grid(tmp_path, "[settings]\npreset = 'quick'\n[rows.fedavg]").cells
    assert (cell.federation.kind, cell.federation.alpha) == ("dirichlet", 0.5)


def test_a_kind_without_alpha_is_dealt_once(tmp_path):
    text = PLAIN.replace("[axes]", "[axes]\nkind = ['dirichlet', 'iid']")
    found = {cell.federation for cell in grid(tmp_path, text).cells if cell.federation.seed == 3}
    assert {(one.kind, one.alpha) for one in found} == {
        ("dirichlet", 0.1),
        ("dirichlet", 1.0),
        ("iid", None),
    }
    assert {one.group for one in found} >= {"5 clients, iid", "5 clients, dirichlet, α = 0.1"}


def test_the_command_line_changes_no_row_behind_its_back(tmp_path):
    with pytest.raises(ConfigError, match="inversion.schedule = 'sparse' can't stand for all rows"):
        grid(tmp_path, **{"inversion.schedule": "sparse"})
    with pytest.raises(ConfigError, match="seed belongs to the axes"):
        grid(tmp_path, **{"seed": 5})


def test_uploads_are_shared_by_all_rows_of_a_federation(tmp_path):
    def names(found):
        return [uploads_name(cell.federation, cell.config) for cell in found.cells]

    first = names(grid(tmp_path))
    assert len(set(first)) == 4 and first[0] == first[1]
    # What clients may share beside their weights is kept in any case.
    opted = 'schedule = "dense", client.share-label-counts = true'
    shared = PLAIN.replace('schedule = "dense"', opted)
    assert names(grid(tmp_path, shared)) == first
    assert not set(names(grid(tmp_path, **{"client.epochs": 3}))) & set(first)


def test_a_cell_has_another_name_for_every_setting_that_counts(tmp_path):
    base = [cell_name(cell) for cell in grid(tmp_path).cells]
    assert len(set(base)) == 8
    for key, value, rows in (
        ("distillation.steps", 61, 4),  # which an average doesn't read
        ("teacher.combine", "mean-logits", 8),
        ("client.share-label-counts", True, 8),
    ):
        changed = [cell_name(cell) for cell in grid(tmp_path, **{key: value}).cells]
        assert len(set(changed) - set(base)) == rows, key
    sized = grid(tmp_path, **{"server.eval-batch-size": 7})  # a matter of memory
    assert [cell_name(cell) for cell in sized.cells] == base


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rows = ", "no experiment file that can be read"),
        ("", "has no rows"),
        ("colour = 1", "'colour' is unknown; known are title, axes, settings, rows"),
        ("[rows.magic]", "'magic' is not a method; known are fedmitr"),
        ("[rows.fedavg]\nstep = 1", "'step' is unknown; known are method, settings"),
        ("[rows]\nfedavg = 1", "rows: fedavg = 1 must be a table"),
        ("[[rows]]\nname = 'fedavg'", "rows = .* must be a table"),
        ("axes = 3\n[rows.fedavg]", "axes = 3 must be a table"),
        ("settings = 'x'\n[rows.fedavg]", "settings = 'x' must be a table"),
        ("[rows.fedavg]\nsettings = 'x'", "rows.fedavg: settings = 'x' must be a table"),
        ("figure = 'x'\n[rows.fedavg]", "figure = 'x' must be a table"),
        ("[figure]\nx = ['seed']\n[rows.fedavg]", "figure.x = .* must be a setting"),
        ("[axes]\nalpha = [1, 1.0]\n[rows.fedavg]", "must be a list of different numbers"),
        ("[settings]\nseed = 3\n[rows.fedavg]", "seed belongs to the axes: .* axes.seeds"),
        (
            "[rows.fedavg]\nsettings = { partition.alpha = 3.0 }",
            "partition.alpha belongs to the axes: .* axes.alpha",
        ),
        ("[axes]\nseed = [0]\n[rows.fedavg]", "'seed' is unknown; known are kind, alpha"),
        ("[axes]\nseeds = []\n[rows.fedavg]", r"axes.seeds = \[\] must be a list of different"),
        ("[axes]\nseeds = [1, 1]\n[rows.fedavg]", "must be a list of different whole numbers"),
        ("[axes]\nseeds = [true]\n[rows.fedavg]", "must be a list of different whole numbers"),
        ("[axes]\nclients = [0]\n[rows.fedavg]", "axes.clients = .* at least 1"),
        ("[axes]\nalpha = [0]\n[rows.fedavg]", "partition.alpha = 0.0 is not allowed"),
        ("[axes]\nkind = ['magic']\n[rows.fedavg]", "partition.kind = 'magic' is not allowed"),
        ("[figure]\nx = 'magic'\n[rows.fedavg]", "figure.x = 'magic' must be a setting"),
        ("[figure]\ncolour = 1\n[rows.fedavg]", "'colour' is unknown; known are x, line"),
        ("[table]\ncolour = 1\n[rows.fedavg]", "'colour' is unknown; known are against"),
        ("[table]\nagainst = 'fedavg'\n[rows.fedavg]", "table.against = .* must be a list of rows"),
        ("[table]\nagainst = [1]\n[rows.fedavg]", r"against = \[1\] must be .* known are fedavg"),
        ("[rows.fedavg]\nsettings = { inversion.typo = 1 }", "inversion.typo is not a setting"),
        ("[rows.a]\nmethod = ['fedavg']", r"\['fedavg'\] is not a method"),
        ("[axes]\nattack = [{}]\n[rows.fedavg]", "axes.attack = .* must be a list of different"),
        ("[axes]\nattack = ['magic']\n[rows.fedavg]", "'magic' is not an attack; known are none, "),
        ("[axes]\nattackers = [0]\n[rows.fedavg]", r"axes.attackers = \[0\] must be .* at least 1"),
        ("[settings]\npreset = ['quick']\n[rows.fedavg]", r"preset = \['quick'\] is not allowed"),
        (f"[axes]\nalpha = [1{'0' * 400}]\n[rows.fedavg]", "must be a list of different numbers"),
        ("[figure]\nx = 'seed'\nline = []\n[rows.fedavg]", r"figure.line = \[\] must be a setting"),
        (
            "[rows.fedavg]\nsettings = { server.exclude-clients = 'client-001' }",
            "server.exclude-clients means nothing in an experiment",
        ),
        ("[settings]\noutput.run-dir = 'x'\n[rows.fedavg]", "output.run-dir means nothing"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words) as raised:
        grid(tmp_path, text)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.toml is no experiment file"):
        read_grid(tmp_path / "nowhere.toml")
