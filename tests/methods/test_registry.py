"""One entry a method, and what it says holds: names, needs, which settings are read."""

from dataclasses import fields, replace

import pytest
import torch

from fedmitr_app.config import parse_config
from fedmitr_app.errors import ConfigError
from fedmitr_app.methods import (
    METHODS,
    Method,
    MethodResult,
    Task,
    check_method,
    find_method,
    register,
)
from fedmitr_app.methods.settings import MethodSettings
from tests.helpers.installed import EXAMPLE, custom_method
from tests.helpers.three_uploads import CPU, settings

SECTIONS = {field.name for field in fields(MethodSettings)} - {"seed"}
# A change of each section that shows in whatever reads it.
CHANGES = {
    "teacher": {"combine": "mean-softmax", "defence": "clip", "probe_images": 9},
    "merge": {"trunk": "ties", "density": 0.3, "head": "class-wise", "scale": 0.5},
    "inversion": {"images": 6, "iterations": 2, "roll": 0.0, "targets": "balanced"},
    "distillation": {"steps": 3, "learning_rate": 0.02, "hard": 0.5, "student": "initial"},
    "generator": {"steps": 3, "latent": 6},
}
PLAIN = sorted(name for name, method in METHODS.items() if not method.needs)


def result(name, chosen, theta0, uploads, folder):
    fused = METHODS[name](Task.load(theta0, uploads, chosen, folder, CPU))
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return fused.predict(images)


def changed(chosen, section):
    return replace(chosen, **{section: replace(getattr(chosen, section), **CHANGES[section])})


@pytest.mark.parametrize("name", PLAIN)
def test_a_method_reads_the_settings_that_it_says_and_no_others(name, theta0, uploads, tmp_path):
    base = settings(distillation={"holdout": 0.0})  # else a start may be returned, as it is
    small = replace(base.generator, turns=2, steps=2, latent=8, width=4)
    base = replace(base, generator=small, teacher=replace(base.teacher, merged=True))
    plain = result(name, base, theta0, uploads, tmp_path / "plain")
    assert set(METHODS[name].reads) <= SECTIONS
    for section in sorted(SECTIONS):
        found = result(name, changed(base, section), theta0, uploads, tmp_path / section)
        if section not in METHODS[name].reads:
            assert torch.equal(found, plain), section
        elif name not in {"best-client", "fedavg", "fedavg-uniform"}:
            # A choice may stay the same; an average reads only whether boasts are doubted.
            assert not torch.equal(found, plain), section


def test_a_server_can_do_all_that_needs_no_real_images():
    for name, method in METHODS.items():
        assert method.name == name
        if "real-images" in method.needs:
            with pytest.raises(ConfigError, match=f"server.method = '{name}' is not allowed"):
                find_method(name)
        else:
            assert find_method(name) is method


def test_what_a_method_needs_of_the_clients_is_asked_for():
    for name in ("fedcgs", "afl"):
        with pytest.raises(ConfigError, match="another method while client.share-moments = false"):
            check_method(parse_config({"server.method": name}))
        sharing = parse_config({"server.method": name, "client.share-moments": True})
        assert check_method(sharing).name == name


def test_a_name_is_taken_once(monkeypatch):
    monkeypatch.setitem(METHODS, "fedavg", METHODS["fedavg"])  # as it was, afterwards
    with pytest.raises(ValueError, match="'fedavg' is registered already, by fedmitr_app.methods"):
        register("fedavg")(lambda task: None)
    assert register("fedavg")(METHODS["fedavg"].run) is METHODS["fedavg"].run


@pytest.fixture
def installed(tmp_path):
    with custom_method(tmp_path / "site"):
        yield


def test_a_method_of_another_package_is_known_by_its_entry_point(
    installed, theta0, uploads, tmp_path
):
    """In under forty lines."""
    assert "best-of-two" not in METHODS
    found = find_method("best-of-two")
    assert len((EXAMPLE / "best_of_two.py").read_text().splitlines()) < 40
    task = Task.load(theta0, uploads, settings(), tmp_path, CPU)
    state = found(task).model.vit.state_dict()
    averages = [METHODS[name](task).model.vit.state_dict() for name in ("merged", "fedavg")]
    assert any(
        all(torch.equal(value, other[name]) for name, value in state.items()) for other in averages
    )


def test_an_unknown_method_is_one_sentence_that_names_those_there_are():
    with pytest.raises(ConfigError) as error:
        find_method("magic", "method")
    told = str(error.value)
    assert "method = 'magic' is not allowed: it must be one of 'afl', 'best-client'" in told
    assert "real-images" not in told and "\n" not in told


def test_what_a_method_can_not_read_or_give_back_is_said_at_once(theta0, uploads, tmp_path):
    with pytest.raises(ValueError, match="reads of method 'odd' must be of .* not \\['mergee'\\]"):
        register("odd", reads=["mergee"])
    with pytest.raises(ValueError, match="needs of method 'odd' must be of"):
        register("odd", needs=["everything"])
    task = Task.load(theta0, uploads, settings(), tmp_path, CPU)
    for found in (task.merged, MethodResult(task.merged)):
        with pytest.raises(TypeError, match="must return a MethodResult of a PatchViT"):
            Method("odd", lambda task, found=found: found, ())(task)
