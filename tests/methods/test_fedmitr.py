"""From uploads to global model, without Flower: pool, θ₀, determinism."""

import copy
from dataclasses import replace

import pytest
import torch

from fedmitr_app.config import TeacherConfig
from fedmitr_app.distillation import Distiller
from fedmitr_app.errors import MethodUnavailable, ModelError, TrainingError
from fedmitr_app.inversion import Pool
from fedmitr_app.methods import MethodSettings, Task, fedmitr, without_inversion
from fedmitr_app.methods.random_patches import random_patches
from fedmitr_app.models import InputSpec
from fedmitr_app.strategies import FedMITR
from tests.helpers.plain_merges import average
from tests.helpers.three_uploads import CPU, settings
from tests.helpers.tiny import SPEC, contents, random_images, tiny_vit


def fuse(theta0, uploads, chosen, folder):
    return fedmitr(Task.load(theta0, uploads, chosen, folder, CPU))


def test_uploads_become_models_in_their_order(theta0, uploads, tmp_path):
    clients = Task.load(theta0, uploads, settings(), tmp_path, CPU).clients
    assert [(c.key, c.num_examples) for c in clients] == [
        ("client-000", 10),
        ("client-001", 20),
        ("client-002", 30),
    ]
    for number, client in enumerate(clients):
        for name, value in tiny_vit(number, torch.float32).vit.state_dict().items():
            assert torch.equal(client.model.vit.state_dict()[name], value)


@pytest.mark.parametrize(("rate", "worse"), [(1e-3, False), (30.0, True)])
def test_a_student_that_came_out_worse_than_its_start_is_not_returned(
    theta0, uploads, tmp_path, caplog, rate, worse
):
    """Worse on images that it did not learn from: the pool's last ones."""
    learnt_from, run = [], Distiller.run

    def listen(distiller, pool, *rest):
        learnt_from.append(pool)
        return run(distiller, pool, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distiller, "run", listen)
        chosen = settings(distillation={"learning_rate": rate, "holdout": 0.3, "steps": 12})
        task = Task.load(theta0, uploads, chosen, tmp_path, CPU)
        found = fedmitr(task)
    pool = Pool(tmp_path / "pool", theta0.num_patches).load()
    assert torch.equal(learnt_from[0].images, pool.images[:8]) and len(pool) == 11
    told = task.teacher(pool.images[8:]).logits.softmax(-1)

    def divergence(model):
        with torch.no_grad():
            answers = model(pool.images[8:]).logits.log_softmax(-1)
        return float((told * (told.log() - answers)).sum(1).mean())

    start = copy.deepcopy(theta0)
    start.vit.load_state_dict(task.merged)
    assert found.held_out.images == 3
    assert found.held_out.start == pytest.approx(divergence(start), rel=1e-3)
    assert found.held_out.start_returned == worse
    assert (found.held_out.student > found.held_out.start) == worse
    assert ("that model is returned" in caplog.text) == worse
    expected = found.held_out.start if worse else found.held_out.student
    assert divergence(found.model) == pytest.approx(expected, rel=1e-3)
    assert not found.model.training and all(p.requires_grad for p in found.model.parameters())


def test_without_images_held_out_the_student_is_returned_whatever_came_of_it(
    theta0, uploads, tmp_path
):
    chosen = settings(distillation={"learning_rate": 30.0, "holdout": 0.0})
    found = fuse(theta0, uploads, chosen, tmp_path)
    assert found.held_out is None
    start, student = average(uploads), found.model.vit.state_dict()
    assert not all(torch.equal(value, start[name]) for name, value in student.items())


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_blocks_make_the_same_model(theta0, uploads, tmp_path):
    plain = fuse(theta0, uploads, settings(), tmp_path / "plain")
    theta0.compiled = True
    found = fuse(theta0, uploads, settings(), tmp_path / "compiled")
    assert found.model.compiled and not plain.model.compiled
    assert found.distillation_loss == pytest.approx(plain.distillation_loss, rel=1e-4)
    folders = (tmp_path / "compiled" / "pool", tmp_path / "plain" / "pool")
    one, other = (torch.tensor(contents(Pool(folder, 16))) for folder in folders)
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
    # Not weight by weight: keys' biases have no gradient but rounding, which Adam makes large.
    images = random_images(9, dtype=torch.float32)
    torch.testing.assert_close(found.predict(images), plain.predict(images), rtol=1e-3, atol=1e-3)


def test_every_image_is_made_in_batches_and_learnt_from(theta0, uploads, tmp_path):
    before = {name: value.clone() for name, value in theta0.state_dict().items()}
    fused = fuse(theta0, uploads, settings(), tmp_path)
    pool = Pool(tmp_path / "pool", theta0.num_patches)
    assert fused.images == len(pool.load()) == 11
    assert len(fused.distillation_loss) == 7
    assert [facts["images"] for facts in pool.provenance()] == [4, 4, 3]
    assert {len(curve) for curve in fused.inversion_curves.values()} == {4}
    assert min(fused.seconds[stage] for stage in ("inversion", "distillation")) > 0.0
    assert not fused.model.training
    # θ₀ gave its shape only; the student is a model of its own.
    assert all(torch.equal(value, before[name]) for name, value in theta0.state_dict().items())
    assert any(
        not torch.equal(value, before[name]) for name, value in fused.model.state_dict().items()
    )


def test_the_log_names_the_combination_that_is_used(theta0, uploads, tmp_path, caplog):
    caplog.set_level("INFO", logger="fedmitr_app")
    for asked, used in (("label-aware", "prior-probed"), ("mean-logits", "mean-logits")):
        caplog.clear()
        plan = MethodSettings(TeacherConfig(asked, 8))
        assert Task.load(theta0, uploads, plan, tmp_path, CPU).teacher.combine == used
        assert caplog.messages[-1] == f"== teacher: ensemble of 3 models, combined by {used} =="
        # Three models read eight images each, or nobody reads any.
        probed = any("class priors: 24 images in" in line for line in caplog.messages)
        assert probed == (used != asked)


def test_the_uploads_models_are_not_changed(theta0, uploads, tmp_path):
    chosen = settings(distillation={"student": "best-client"})
    task = Task.load(theta0, uploads, chosen, tmp_path, CPU)
    fedmitr(task)
    for client, upload in zip(task.clients, uploads, strict=True):
        for name, value in upload.load_state().items():
            assert torch.equal(client.model.vit.state_dict()[name], value)


def test_the_same_seed_gives_the_same_pool_and_student(theta0, uploads, tmp_path):
    def bits(name, seed):
        chosen = settings(seed=seed)
        fused = fuse(theta0, uploads, chosen, tmp_path / name)
        flat = torch.cat([value.flatten() for value in fused.model.state_dict().values()])
        return contents(Pool(tmp_path / name / "pool", theta0.num_patches)), flat

    (one, first), (two, second) = bits("a", 0), bits("b", 0)
    assert one == two and torch.equal(first, second)
    other, third = bits("c", 1)
    assert one != other and not torch.equal(first, third)


def test_the_control_keeps_everything_but_inversion(theta0, uploads, tmp_path):
    chosen = settings(stops=(1.0, 3.0), drop=(0.2, 0.3))
    control = without_inversion(chosen)
    assert control.inversion.iterations == 0 and control.inversion.candidates == 1
    assert (control.teacher, control.distillation, control.seed) == (
        chosen.teacher,
        chosen.distillation,
        chosen.seed,
    )
    plain = fuse(theta0, uploads, control, tmp_path / "control")
    inverted = fuse(theta0, uploads, chosen, tmp_path)
    assert plain.images == inverted.images and plain.inversion_curves["loss"] == []
    states = plain.model.state_dict(), inverted.model.state_dict()
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])
    pool = Pool(tmp_path / "control" / "pool", theta0.num_patches).load()
    assert not pool.mask.any()


@pytest.mark.parametrize("stage", ["inversion", "distillation"])
def test_leaving_the_finite_numbers_is_one_sentence(theta0, uploads, tmp_path, stage):
    chosen = settings(distillation={"learning_rate": 1e30 if stage == "distillation" else 1e-3})
    chosen = replace(chosen, teacher=TeacherConfig("mean-logits", 8))
    task = Task.load(theta0, uploads, chosen, tmp_path, CPU)
    if stage == "inversion":
        for client in task.clients:
            torch.nn.init.constant_(client.model.vit.head.weight, float("nan"))
    with pytest.raises(TrainingError, match=f"{stage}.learning-rate = .* lower it"):
        fedmitr(task)


def test_a_model_whose_answers_are_not_finite_teaches_nobody(theta0, uploads, tmp_path, caplog):
    task = Task.load(theta0, uploads, settings(), tmp_path, CPU)
    torch.nn.init.constant_(task.clients[1].model.vit.head.weight, 3e38)
    rest = task.defended()
    assert [client.key for client in rest.clients] == ["client-000", "client-002"]
    assert "client-001 is suspicious, and left out: its answers are not finite" in caplog.text
    state = fedmitr(rest).model.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    # It is no part of the average that the student starts from either.
    without = average([upload for upload in uploads if upload.client != "client-001"])
    assert all(torch.equal(rest.average[name], value) for name, value in without.items())


@pytest.mark.parametrize("defence", ["none", "leave-one-out"])
def test_a_loud_model_is_left_out_where_that_is_asked_for(
    theta0, uploads, tmp_path, caplog, defence
):
    plan = replace(settings(), teacher=TeacherConfig(probe_images=8, defence=defence))
    task = Task.load(theta0, uploads, plan, tmp_path, CPU)
    task.clients[1].model.vit.head.weight.data *= 1e3
    kept = [client.key for client in task.defended().clients]
    strict = defence == "leave-one-out"
    assert ("client-001" in kept) != strict and len(kept) == (2 if strict else 3)
    done = "left out" if strict else "stays all the same"
    assert f"client-001 is suspicious, and {done}" in caplog.text


@pytest.mark.parametrize("defence", ["none", "clip", "leave-one-out"])
def test_a_boast_counts_for_less_under_a_defence(theta0, uploads, tmp_path, defence):
    plan = replace(settings(), teacher=TeacherConfig(probe_images=8, defence=defence))
    boasting = [*uploads[:2], replace(uploads[2], num_examples=9000)]  # the others have 10 and 20
    task = Task.load(theta0, boasting, plan, tmp_path, CPU)
    most = 9000 if defence == "none" else 60
    assert [client.num_examples for client in task.clients] == [10, 20, most]
    expected = average([*uploads[:2], replace(uploads[2], num_examples=most)])
    assert all(torch.equal(task.average[name], value) for name, value in expected.items())


@pytest.mark.parametrize("defence", ["none", "clip"])
def test_what_is_turned_down_is_no_part_of_the_students_start(theta0, uploads, tmp_path, defence):
    plan = replace(settings(), teacher=TeacherConfig(probe_images=8, defence=defence))
    task = Task.load(theta0, uploads, plan, tmp_path, CPU)
    task.clients[1].model.vit.head.weight.data *= 1e3
    task = task.defended()
    assert len(task.clients) == 3
    expected = average([uploads[0], uploads[2]]) if defence == "clip" else average(uploads)
    found = task.merged
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_strategy_fuses_the_same_with_and_without_a_run_folder(theta0, uploads, tmp_path):
    chosen = settings()
    parts = {name: getattr(chosen, name) for name in ("teacher", "inversion", "distillation")}
    within = FedMITR(theta0, device="cpu", run_dir=tmp_path, **parts)
    without = FedMITR(theta0.vit, input_spec=SPEC, device="cpu", **parts)
    first, second = within.fuse(uploads), without.fuse(uploads)
    assert all(torch.equal(first[name], second[name]) for name in theta0.vit.state_dict())
    assert len(list((tmp_path / "pool").iterdir())) == 3
    assert [client.key for client in within.task.clients] == [upload.client for upload in uploads]


def test_the_strategy_distils_the_control_beside_the_model(theta0, uploads, tmp_path):
    chosen = settings()
    parts = {name: getattr(chosen, name) for name in ("teacher", "inversion", "distillation")}
    strategy = FedMITR(theta0, device="cpu", run_dir=tmp_path / "run", with_control=True, **parts)
    fused = strategy.fuse(uploads)
    expected = (chosen, strategy.fused), (without_inversion(chosen), strategy.control)
    for number, (plan, found) in enumerate(expected):
        alone = fuse(theta0, uploads, plan, tmp_path / f"alone-{number}")
        # Another number of threads may add in another order, which Adam makes larger.
        torch.testing.assert_close(
            found.model.state_dict(), alone.model.state_dict(), atol=1e-3, rtol=0.0
        )
    assert all(
        torch.equal(fused[name], value)
        for name, value in strategy.fused.model.vit.state_dict().items()
    )
    # Its images are kept apart, for a run that is stopped and gone on with.
    assert {"pool", "control"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert len(list((tmp_path / "run" / "pool").iterdir())) == 3


def test_a_device_that_the_strategy_chose_is_told_once(theta0, caplog):
    caplog.set_level("INFO", logger="fedmitr_app")
    FedMITR(theta0, device="cpu").summary()
    assert sum("server: device cpu" in line for line in caplog.messages) == 1
    *branches, last = caplog.messages
    assert all(line.startswith("\t├──> ") for line in branches) and last.startswith("\t└──> ")
    caplog.clear()
    FedMITR(theta0, device=CPU).summary()
    assert caplog.messages and not any("server: device" in line for line in caplog.messages)


def test_the_strategy_refuses_what_it_cannot_invert(theta0):
    with pytest.raises(ModelError, match="not a Linear: pass a plain timm ViT"):
        FedMITR(torch.nn.Linear(2, 2))
    other = InputSpec(SPEC.size, SPEC.channels, (0.1,), (0.9,))
    with pytest.raises(ModelError, match="is not what the PatchViT takes"):
        FedMITR(theta0, input_spec=other)


def test_an_automatic_schedule_may_keep_another_number_in_each_batch(theta0, uploads, tmp_path):
    chosen = settings(schedule="automatic", drop=(0.4,))
    fused = fuse(theta0, uploads, chosen, tmp_path)
    kept = Pool(tmp_path / "pool", theta0.num_patches).load().mask.sum(1).tolist()
    # Batches of 4, 4 and 3 images: one number in each, and fewer than there were.
    batches = [kept[:4], kept[4:8], kept[8:]]
    assert all(len(set(batch)) == 1 and batch[0] < theta0.num_patches for batch in batches)
    last = fused.inversion_curves["alive"][-1]
    assert last == pytest.approx(sum(kept) / len(kept))
    assert fused.inversion_curves["alive"][0] == theta0.num_patches


def test_chance_cannot_say_how_many_patches_stop(theta0, uploads, tmp_path):
    task = Task.load(theta0, uploads, settings(schedule="automatic"), tmp_path, CPU)
    with pytest.raises(MethodUnavailable, match="set inversion.schedule = 'sparse'"):
        random_patches(task)
