"""The whole loss on a batch against an oracle, and the student's training."""

import copy
import itertools

import pytest
import torch

from fedmitr_app.distillation import Distiller
from fedmitr_app.distillation.batches import Batch
from fedmitr_app.distillation.distil import MAX_FALLS
from fedmitr_app.distillation.losses import class_loss, token_loss
from fedmitr_app.errors import TrainingError
from fedmitr_app.inversion.pool import PoolData
from fedmitr_app.teacher import Teacher
from fedmitr_app.utils.randomness import generator
from tests.helpers.tiny import (
    distillation_config,
    random_images,
    random_targets,
    tiny_teacher,
    tiny_vit,
)

BATCH, PATCHES = 4, 16


def batch_of(kept: tuple[int, ...] = (5, 9, 16, 2)) -> Batch:
    rng = torch.Generator().manual_seed(8)
    mask = torch.zeros(BATCH, PATCHES, dtype=torch.bool)
    for image, count in enumerate(kept):
        mask[image, torch.randperm(PATCHES, generator=rng)[:count]] = True
    return Batch(random_images(BATCH), mask, random_targets(BATCH))


def distiller(seed: int = 40, teacher: Teacher | None = None, **changes) -> Distiller:
    teacher = teacher or tiny_teacher("prior-confidence")
    student = tiny_vit(seed, teacher.class_weights.dtype)
    return Distiller(student, teacher, distillation_config(**changes), generator(0, "distil"))


def background_patches(batch: Batch) -> list[list[int]]:
    """For each image, the low-density patches that are shown: as many for each, spread evenly."""
    free = [[n for n in range(PATCHES) if not mask[n]] for mask in batch.mask]
    fewest = min((len(patches) for patches in free if patches), default=0)
    return [[p[step * len(p) // fewest] for step in range(fewest)] if p else [] for p in free]


def loss_by_hand(made: Distiller, batch: Batch) -> torch.Tensor:
    """Image by image."""
    config, vit, shown = made.config, made.student.vit, background_patches(batch)
    losses = []
    for image in range(BATCH):
        one = batch.images[image : image + 1]
        taught = made.teacher(one, patch_logits=True)
        tokens = vit.forward_features(one)
        targets, mask = batch.targets[image : image + 1], batch.mask[image : image + 1]
        loss = class_loss(
            vit.forward_head(tokens), taught.logits, targets, config.temperature, config.hard
        )
        if config.relabel != "none":
            relabels = {
                "token": taught.patch_logits,
                "image": taught.logits[:, None],
                "background": taught.logits[:, None],
            }[config.relabel]
            if config.relabel == "background" and shown[image]:
                relabels = made.teacher(one, torch.tensor([shown[image]])).logits[:, None]
            loss = loss + config.beta * token_loss(
                vit.head(tokens[:, 1:]), targets, mask, relabels, config.gamma, config.tau
            )
        losses.append(loss)
    return torch.cat(losses)


@pytest.mark.parametrize("relabel", ["none", "token", "image", "background"])
def test_the_loss_of_every_reading(relabel):
    made, batch = distiller(relabel=relabel), batch_of()
    torch.testing.assert_close(made.loss(batch), loss_by_hand(made, batch))


@pytest.mark.parametrize("kept", [0, PATCHES])
@pytest.mark.parametrize("relabel", ["token", "image", "background"])
def test_no_survivor_and_nothing_but_survivors(relabel, kept):
    made, batch = distiller(relabel=relabel, hard=0.0), batch_of((kept,) * BATCH)
    torch.testing.assert_close(made.loss(batch), loss_by_hand(made, batch))
    other = batch._replace(targets=random_targets(BATCH, seed=9))
    assert torch.equal(made.loss(batch), made.loss(other)) == (kept == 0)


def test_the_three_readings_differ_where_patches_were_dropped():
    batch = batch_of()
    losses = torch.stack(
        [distiller(relabel=name).loss(batch) for name in ("token", "image", "background")]
    )
    for one, other in ((0, 1), (0, 2), (1, 2)):
        differs = (losses[one] - losses[other]).abs() > 1e-9
        assert differs.tolist() == [True, True, False, True]


def test_the_readings_agree_when_nothing_was_dropped():
    batch = batch_of((PATCHES,) * BATCH)
    losses = [distiller(relabel=name).loss(batch) for name in ("token", "image", "background")]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


def test_beta_nought_leaves_the_class_loss():
    batch = batch_of()
    torch.testing.assert_close(
        distiller(beta=0.0).loss(batch), distiller(relabel="none").loss(batch)
    )


# --- training


def pool_of(count: int = 12) -> PoolData:
    rng = torch.Generator().manual_seed(3)
    return PoolData(
        random_images(count, dtype=torch.float32),
        random_targets(count, dtype=torch.float32),
        torch.rand(count, PATCHES, generator=rng) < 0.4,
    )


def trainee(**changes) -> Distiller:
    return distiller(teacher=tiny_teacher("prior-probed", dtype=torch.float32), **changes)


def test_training_brings_the_student_to_the_teacher():
    # Without hard labels the loss is a divergence, which can go to nought.
    made = trainee(steps=60, hard=0.0, beta=0.0)
    losses = made.run(pool_of(), 60)
    assert len(losses) == 60 and sum(losses[-5:]) < 0.1 * sum(losses[:5])
    assert not made.student.training


@pytest.mark.parametrize("relabel", ["token", "background"])
def test_two_runs_equal_one_of_as_many_steps(relabel):
    one, two = trainee(relabel=relabel), trainee(relabel=relabel)
    whole = one.run(pool_of(), 6)
    assert two.run(pool_of(), 2) + two.run(pool_of(), 4) == whole
    states = one.student.state_dict(), two.student.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_repeated_batches_ask_the_teacher_once(monkeypatch):
    made = trainee(relabel="token", repeats=3)
    asked, seen = [], []
    ask, loss = made.ask, made.loss
    monkeypatch.setattr(made, "ask", lambda batch: asked.append(batch) or ask(batch))
    monkeypatch.setattr(
        made, "loss", lambda batch, labels: seen.append(batch.images.sum()) or loss(batch, labels)
    )
    made.run(pool_of(), 12)
    assert len(asked) == 4
    seen = [float(pixels) for pixels in seen]  # tell batches apart, which are made anew
    assert [seen.count(key) for key in set(seen)] == [3] * 4
    # Every pass goes through all of them before any comes again, in an order of its own.
    passes = [tuple(seen[first : first + 4]) for first in (0, 4, 8)]
    assert all(len(set(each)) == 4 for each in passes) and len(set(passes)) == 3


def test_features_that_stay_give_what_the_whole_student_gives(monkeypatch):
    """With only its head to train a student sees a batch's pixels once, and learns the same."""
    settings = {"train": "head", "relabel": "none", "repeats": 4, "hard": 0.3}
    quick, slow = trainee(**settings), trainee(**settings)
    seen = []
    quick.student.register_forward_hook(lambda *_: seen.append(1))
    monkeypatch.setattr(Distiller, "still", property(lambda made: made is quick))
    losses = quick.run(pool_of(), 12)
    assert losses == pytest.approx(slow.run(pool_of(), 12), rel=1e-5)
    assert len(seen) == 3
    for key, value in quick.student.state_dict().items():
        torch.testing.assert_close(value, slow.student.state_dict()[key], rtol=1e-4, atol=1e-5)


def test_whose_features_stay():
    assert trainee(train="head", relabel="none").still
    assert trainee(train="head", relabel="token", beta=0.0).still
    assert not trainee(train="head", relabel="token").still
    assert not trainee(train="last-blocks", relabel="none").still
    assert not trainee(relabel="none").still


def test_the_first_pass_is_the_same_however_often_batches_repeat():
    assert trainee(repeats=2).run(pool_of(), 6)[:3] == trainee(repeats=1).run(pool_of(), 6)[:3]


def test_the_seed_alone_decides():
    torch.manual_seed(1)
    losses = trainee().run(pool_of(), 3)
    torch.manual_seed(2)
    assert trainee().run(pool_of(), 3) == losses


@pytest.mark.parametrize("relabel", ["none", "token"])
def test_only_the_head_moves_if_only_the_head_trains(relabel):
    made = trainee(train="head", relabel=relabel)
    before = copy.deepcopy(made.student.vit.state_dict())
    made.run(pool_of(), 3)
    after = made.student.vit.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"head.weight", "head.bias"}


def test_the_last_blocks_alone():
    made = trainee(train="last-blocks", last_blocks=1)
    before = copy.deepcopy(made.student.vit.state_dict())
    made.run(pool_of(), 3)
    after = made.student.vit.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    still = [key for key in before if key.startswith("blocks.0.")]
    assert moved == {"blocks", "norm", "head"}
    assert all(torch.equal(before[key], after[key]) for key in still)


def test_the_teacher_is_left_alone():
    made = trainee()
    before = [p.clone() for model in made.teacher.models for p in model.parameters()]
    made.run(pool_of(), 3)
    after = [p for model in made.teacher.models for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert all(p.grad is None for p in after)


def test_a_pool_smaller_than_the_batch():
    assert len(trainee(batch_size=9).run(pool_of(2), 2)) == 2


# --- going back, and going on


def spoil_at(made: Distiller, *steps: int) -> None:
    """Make the loss NaN at some of the steps that are taken."""
    honest, taken = made.loss, itertools.count()

    def loss(*arguments):
        return honest(*arguments) * (torch.nan if next(taken) in steps else 1.0)

    made.loss = loss


def test_a_student_that_leaves_the_finite_numbers_goes_back_and_on_at_half_the_rate(caplog):
    made, soundness = trainee(steps=40), []
    spoil_at(made, 21)
    rates = []
    losses = made.run(
        pool_of(),
        40,
        on_step=lambda loss: rates.append(made.optimiser.param_groups[0]["lr"]),
        on_good=soundness.append,
    )
    # Checked every four steps: the 22nd loss, and those after it until the check, are lost.
    assert [step for step, loss in enumerate(losses) if not loss == loss] == [21, 22, 23]
    assert soundness == [4, 8, 12, 16, 20, 28, 32, 36, 40]
    assert "back to the student of step 20, and on at half the learning rate" in caplog.text
    whole = trainee(steps=40)
    usual = []
    whole.run(pool_of(), 40, on_step=lambda _: usual.append(whole.optimiser.param_groups[0]["lr"]))
    assert rates[:24] == usual[:24]
    assert rates[24:] == pytest.approx([rate / 2 for rate in usual[24:]])
    assert all(value.isfinite().all() for value in made.student.state_dict().values())


def test_a_weight_that_is_not_finite_is_noticed_too():
    made = trainee(steps=20)

    def poison(loss):
        if len(seen) == 3:
            made.parameters[0].data.fill_(torch.inf)
        seen.append(loss)

    seen: list[torch.Tensor] = []
    made.run(pool_of(), 20, on_step=poison)
    assert made.falls == 1 and all(part.isfinite().all() for part in made.parameters)


def test_falling_again_and_again_is_an_error():
    made = trainee(steps=40)
    spoil_at(made, *range(5, 40))
    with pytest.raises(TrainingError, match="distillation.learning-rate = .* lower it"):
        made.run(pool_of(), 40)
    assert made.falls == MAX_FALLS


@pytest.mark.parametrize(
    "changes",
    [{}, {"relabel": "token"}, {"relabel": "none", "train": "head"}],
    ids=str,
)
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("done", [4, 16, 40])
def test_what_is_gone_on_with_ends_the_same_to_the_last_bit(changes, repeats, done):
    settings = {"steps": 40, "repeats": repeats, **changes}
    whole, states = trainee(**settings), {}

    def keep(reached):
        states[reached] = {name: value.clone() for name, value in whole.state().items()}

    losses = whole.run(pool_of(), 40, on_good=keep)
    again = trainee(**settings)
    again.restore(states[done], done, 0)
    assert again.run(pool_of(), 40, done=done) == losses[done:]
    ended = again.state()
    assert ended.keys() == whole.state().keys()
    assert all(torch.equal(ended[name], value) for name, value in whole.state().items())


@pytest.mark.parametrize("most", [1, 3])
def test_a_batch_that_is_too_large_is_split_and_gives_the_same(monkeypatch, caplog, most):
    settings = {"steps": 6, "relabel": "background"}
    whole, parts = trainee(**settings), trainee(**settings)
    losses, honest = whole.run(pool_of(), 6), parts.loss

    def limited(batch, labels):
        if len(batch.images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(batch, labels)

    monkeypatch.setattr(parts, "loss", limited)
    assert parts.run(pool_of(), 6) == pytest.approx(losses, rel=1e-4)
    # Adam makes rounding large where there is no gradient: what they answer is compared.
    images = pool_of().images
    answers = [made.student(images).logits for made in (whole, parts)]
    torch.testing.assert_close(*answers, rtol=1e-2, atol=1e-2)
    assert "out of memory: distilling " in caplog.text


@pytest.mark.parametrize("changes", [{}, {"train": "head"}])
def test_only_a_state_of_its_own_kind_is_taken(changes):
    made = trainee(**changes)
    assert made.takes(made.state())  # before a step
    made.run(pool_of(), 2)
    state = made.state()
    name = next(name for name in state if name.endswith("exp_avg"))
    assert trainee(**changes).takes(state)
    for wrong in (
        {**state, "student.more": torch.zeros(1)},
        {**state, "optimiser.999.step": torch.tensor(1.0)},
        {**state, name: torch.zeros(7, dtype=state[name].dtype)},
        {**state, name: state[name].half()},
        {**state, name: torch.full_like(state[name], torch.nan)},
        {key: value for key, value in state.items() if key != name},
        {key: value for key, value in state.items() if not key.startswith("student.")},
    ):
        assert not trainee(**changes).takes(wrong)
