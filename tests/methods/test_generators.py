"""DENSE and Co-Boosting: their generator, their losses by hand, and whole runs."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fedmitr_app.config import DistillationConfig, GeneratorConfig, InversionConfig, TeacherConfig
from fedmitr_app.errors import TrainingError
from fedmitr_app.inversion import Pool
from fedmitr_app.inversion.losses import cross_entropy
from fedmitr_app.methods import METHODS, MethodSettings, Task
from fedmitr_app.methods.rivals import generator as shared
from fedmitr_app.methods.rivals.co_boosting import (
    WeightedEnsemble,
    co_boosting,
    difficulty,
    diversify,
)
from fedmitr_app.methods.rivals.co_boosting import objective as co_boosting_objective
from fedmitr_app.methods.rivals.dense import dense, disagreement
from fedmitr_app.methods.rivals.dense import objective as dense_objective
from fedmitr_app.methods.rivals.generator import (
    Generator,
    class_token_only,
    ensemble_logits,
    generate_batch,
    number_of_turns,
)
from fedmitr_app.methods.student import StudentTraining
from fedmitr_app.models import InputSpec
from fedmitr_app.teacher import Teacher
from fedmitr_app.utils.randomness import generator, seeded_init
from tests.helpers.tiny import CLASSES, SPEC, contents, random_images, tiny_teacher, tiny_vit

CPU = torch.device("cpu")
IMAGES, STEPS = 11, 7
both = pytest.mark.parametrize("method", [dense, co_boosting], ids=["dense", "co-boosting"])


def settings(seed=0, combine="mean-logits", **changes):
    small = {"turns": 3, "steps": 4, "latent": 8, "width": 8, "weight_step": 0.05}
    return MethodSettings(
        TeacherConfig(combine, 8),
        InversionConfig(images=IMAGES, batch_size=4),
        DistillationConfig(steps=STEPS, batch_size=4),
        seed,
        GeneratorConfig(**{**small, **changes}),
    )


@pytest.fixture
def task(theta0, uploads, tmp_path):
    return Task.load(theta0, uploads, settings(), tmp_path / "run", CPU)


def under(task, **changes):
    return task.alter(lambda ours: settings(**changes))


def within(images, spec, slack=0.0):
    low, high = spec.pixel_range(images)
    return bool(((images >= low - slack) & (images <= high + slack)).all())


# --- the generator


@pytest.mark.parametrize("size", [4, 8, 9, 16, 28, 32, 96, 224])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_generator_fits_any_images(size, channels):
    spec = InputSpec(size, channels, (0.485, 0.456, 0.406)[:channels], (0.25,))
    with seeded_init(0, "test"):
        maker = Generator(spec, GeneratorConfig(width=4, latent=8))
    images = maker(torch.randn(2, 8, generator=generator(0, "noise")))
    assert images.shape == (2, channels, size, size)
    assert within(images, spec, slack=1e-6)


def test_a_generator_for_large_images_stays_small():
    maker = Generator(InputSpec(224, 3, (0.5,), (0.5,)), GeneratorConfig(width=64))
    assert maker.sides == [7, 14, 28, 56, 112, 224]
    assert sum(parameter.numel() for parameter in maker.parameters()) < 2_500_000
    # Up to 32 pixels it is the papers': two doublings, 128, 128 and 64 channels.
    shapes = [stage[0].weight.shape[:2] for stage in maker.stages]
    assert shapes[:2] == [(128, 128), (64, 128)] and shapes[2:] == [(32, 64), (16, 32), (16, 16)]


def test_the_generator_lowers_the_ensembles_cross_entropy(task):
    task = under(task, steps=40, learning_rate=1e-2)
    made = generate_batch(task, task.teacher, dense_objective(1.0), None, 0, 8)
    images, targets, keep_idx = made.batch[:3]
    found = cross_entropy(ensemble_logits(task.teacher, images), targets).mean()
    before = made.curves["loss"][0]
    assert found < 0.8 * before
    assert made.curves["confidence"][-1] > made.curves["confidence"][0]
    assert keep_idx.shape == (8, 16) and len(made.curves["loss"]) == 40
    # Balanced: all classes alike often, as far as eight images go.
    assert targets.sum(0).min() >= 1 and torch.equal(targets.sum(1), torch.ones(8))


def test_the_batch_of_the_lowest_loss_is_kept(task):
    seen = []

    def loss(logits, targets, student_logits):
        seen.append(logits.detach())
        # Best at the second of four steps, though the images go on moving.
        return 1e-4 * logits.sum(-1) + (1.0, 0.2, 0.5, 0.9)[len(seen) - 1]

    # Without rolls what the loss sees is the batch itself.
    still = replace(task.settings, inversion=replace(task.settings.inversion, roll=0.0))
    task = task.alter(lambda ours: still)
    made = generate_batch(task, task.teacher, loss, None, 0, 4)
    expected = torch.tensor([1.0, 0.2, 0.5, 0.9])
    torch.testing.assert_close(made.curves["loss"], expected, rtol=0, atol=0.02)
    assert all(not torch.allclose(seen[1], other) for other in (seen[0], seen[2], seen[3]))
    with torch.no_grad():
        torch.testing.assert_close(ensemble_logits(task.teacher, made.batch.images), seen[1])


def test_each_turn_starts_from_a_fresh_generator(task, monkeypatch):
    firsts = []

    class Watched(Generator):
        def __init__(self, spec, config):
            super().__init__(spec, config)
            firsts.append(self.pixels.weight.detach().clone())

    monkeypatch.setattr(shared, "Generator", Watched)
    dense(task)
    assert len(firsts) == 3
    assert len({tuple(first.flatten().tolist()) for first in firsts}) == 3
    # N(0, 0.02²), untrained, in the last turn too.
    assert all(first.abs().max() < 0.1 for first in firsts)


def test_the_student_keeps_its_own_gradients(task):
    student = tiny_vit(7, torch.float32).requires_grad_(True)
    student.vit.head.bias.grad = torch.full((CLASSES,), 3.0)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    generate_batch(task, task.teacher, dense_objective(1.0), student, 0, 4)
    assert torch.equal(student.vit.head.bias.grad, torch.full((CLASSES,), 3.0))
    assert student.vit.head.weight.grad is None
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters()))


@pytest.mark.parametrize(
    ("turns", "images", "batch_size", "expected"),
    [(8, 1024, 512, 8), (8, 1024, 64, 16), (8, 5, 512, 5), (2, 9, 4, 3), (1, 4, 4, 1)],
)
def test_turns_fit_the_batch_and_the_images(turns, images, batch_size, expected):
    plan = MethodSettings(
        inversion=InversionConfig(images=images, batch_size=batch_size),
        generator=GeneratorConfig(turns=turns),
    )
    assert number_of_turns(plan) == expected


# --- losses by hand

LOGITS = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]).log()
STUDENT = torch.tensor([[0.5, 0.5001], [0.9, 0.1], [0.75, 0.25]]).log()
FIRST = torch.tensor([[1.0, 0.0]]).expand(3, 2)


def test_disagreement_counts_only_where_the_decisions_differ():
    def kl(p, q):
        return sum(a * math.log(a / b) for a, b in zip(p, q))

    found = disagreement(LOGITS, STUDENT)
    expected = [kl((0.8, 0.2), (0.5, 0.5)), 0.0, kl((0.3, 0.7), (0.75, 0.25))]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)
    loss = dense_objective(0.5)(LOGITS, FIRST, STUDENT)
    alone = -torch.tensor([0.8, 0.6, 0.3]).log()
    torch.testing.assert_close(loss, alone - 0.5 * found)
    # Before there is a student, and without a weight, cross-entropy is all.
    for weight, student in ((0.5, None), (0.0, STUDENT)):
        torch.testing.assert_close(dense_objective(weight)(LOGITS, FIRST, student), alone)


def test_difficulty_weighs_the_cross_entropy_without_a_gradient():
    logits = LOGITS.clone().requires_grad_()
    torch.testing.assert_close(difficulty(logits, FIRST), torch.tensor([0.2, 0.4, 0.7]))
    loss = co_boosting_objective(0.0)(logits, FIRST, STUDENT)
    hand = -torch.tensor([0.2 * math.log(0.8), 0.4 * math.log(0.6), 0.7 * math.log(0.3)])
    torch.testing.assert_close(loss, hand)
    loss.sum().backward()
    # d CE/d z = p - y, times the weight, and nothing through the weight itself.
    expected = torch.tensor([[0.2], [0.4], [0.7]]) * (LOGITS.exp() - FIRST)
    torch.testing.assert_close(logits.grad, expected)


def test_the_adversarial_term_counts_every_image():
    plain = co_boosting_objective(0.0)(LOGITS, FIRST, STUDENT)
    found = (plain - co_boosting_objective(2.0)(LOGITS, FIRST, STUDENT)) / 2
    p, q = (LOGITS / 3).softmax(-1), (STUDENT / 3).softmax(-1)
    torch.testing.assert_close(found, 9 * (p * (p / q).log()).sum(-1))
    assert (found > 0).all()


# --- diverse samples


@pytest.mark.parametrize("channels", [1, 3])
def test_a_diverse_sample_moves_each_pixel_by_epsilon_within_the_valid_range(channels):
    spec = InputSpec(16, channels, (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.4)[:channels])
    models = tuple(tiny_vit(seed, spec=spec).requires_grad_(False) for seed in range(2))
    teacher = Teacher(models, "mean-logits", torch.ones(2, CLASSES, dtype=torch.float64))
    images = random_images(3, spec=spec)
    before, eps = images.clone(), 8 / 255
    moved = diversify(teacher, images, spec, eps, generator(0, "test"))
    assert torch.equal(images, before) and not moved.requires_grad
    assert within(moved, spec)
    pixels, step = spec.denormalise(images), (spec.denormalise(moved) - spec.denormalise(images))
    inside = (pixels > eps) & (pixels < 1 - eps)
    torch.testing.assert_close(step[inside].abs(), torch.full_like(step[inside], eps))
    assert step.abs().max() < eps + 1e-9 and not inside.all()
    # Up the gradient of u·A(x), with u in [-1, 1] drawn for each image and class.
    drawn = 2 * torch.rand(3, CLASSES, generator=generator(0, "test")).double() - 1
    rise = drawn * (ensemble_logits(teacher, moved) - ensemble_logits(teacher, images))
    assert (rise.sum(-1) > 0).all()
    assert not torch.equal(moved, diversify(teacher, images, spec, eps, generator(1, "test")))


# --- the learned ensemble


def answering(*logits):
    """Clients that give fixed logits, whatever they see."""
    return tuple(
        lambda images, row=row: SimpleNamespace(logits=torch.tensor([row]).expand(len(images), -1))
        for row in logits
    )


HALVES = torch.ones(2, 2)


@pytest.mark.parametrize("combine", ["mean-logits", "mean-softmax", "prior-probed"])
def test_a_client_that_is_wrong_loses_weight(combine):
    base = Teacher(answering([4.0, 0.0], [0.0, 4.0]), combine, HALVES)
    ensemble = WeightedEnsemble.uniform(base)
    assert torch.equal(ensemble.weights, torch.tensor([0.5, 0.5]))
    images, targets = torch.zeros(2, 1, 4, 4), FIRST[:2]
    once = ensemble.step(images, targets, 0.1)
    torch.testing.assert_close(once.weights, torch.tensor([0.6, 0.4]))
    for _ in range(9):
        once = once.step(images, targets, 0.1)
        assert ((once.weights >= 0) & (once.weights <= 1)).all()
    torch.testing.assert_close(once.weights, torch.tensor([1.0, 0.0]))
    # Only the client that is right is left, and the teacher before is as it was.
    torch.testing.assert_close(
        ensemble_logits(once.teacher, images).softmax(-1),
        torch.tensor([[4.0, 0.0]]).softmax(-1).expand(2, -1),
    )
    assert torch.equal(base.class_weights, HALVES)


def test_uniform_weights_are_the_base():
    base = tiny_teacher("prior-probed")
    images = random_images(2)
    torch.testing.assert_close(
        WeightedEnsemble.uniform(base).teacher(images).logits, base(images).logits
    )


def test_a_class_that_only_weightless_clients_know_is_answered_as_before():
    knows = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    base = Teacher(answering([4.0, 0.0], [0.0, 4.0]), "label-aware", knows)
    weighted = WeightedEnsemble(base, torch.tensor([0.5, 0.0])).teacher
    torch.testing.assert_close(weighted.class_weights, torch.tensor([[0.5, 0.0], [0.0, 3.0]]))


# --- whole runs


@both
def test_every_image_and_step_is_used_once(task, method):
    recorded = []
    task = replace(task, record=lambda stage, **values: recorded.append((stage, values)))
    fused = method(task)
    pool = Pool(task.folder / "pool", task.model.num_patches)
    data = pool.load()
    assert fused.images == len(data) == IMAGES
    assert data.images.shape == (IMAGES, SPEC.channels, SPEC.size, SPEC.size)
    # As far as float16 is exact.
    assert within(data.images, SPEC, slack=2e-3) and data.mask.all()
    assert [facts["turn"] for facts in pool.provenance()] == [0, 1, 2]
    assert pool.provenance()[0]["settings"]["steps"] == 4
    assert len(fused.distillation_loss) == STEPS and not fused.model.training
    assert {name: len(curve) for name, curve in fused.inversion_curves.items()} == {
        "loss": 4,
        "confidence": 4,
    }
    steps = [values for stage, values in recorded if stage == "generator"]
    assert [(point["turn"], point["step"]) for point in steps] == [
        (turn, step) for turn in range(3) for step in range(4)
    ]


@both
def test_the_same_seed_gives_the_same_pool_student_and_ensemble(task, method, tmp_path):
    def bits(name, seed):
        fused = method(replace(under(task, seed=seed), folder=tmp_path / name))
        flat = [value.flatten() for value in fused.model.state_dict().values()]
        pool = contents(Pool(tmp_path / name / "pool", task.model.num_patches))
        return pool, torch.cat([*flat, fused.teacher.class_weights.flatten()]).tolist()

    state = torch.random.get_rng_state()
    first = bits("a", 0)
    # Nobody's global draws are touched.
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == bits("b", 0)
    other = bits("c", 1)
    assert first[0] != other[0] and first[1] != other[1]


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_the_student_that_is_returned_is_distilled_on_the_finished_pool(task, weight):
    """As every method's: all steps, one schedule, whatever the adversary learned on the way."""
    recorded = []
    task = replace(task, record=lambda stage, **values: recorded.append(stage))
    task = under(task, disagreement=weight)
    fused = dense(task)
    pool = Pool(task.folder / "pool", task.model.num_patches).load()
    alone = StudentTraining(task.alter(class_token_only), pool.images)
    alone.go_on(pool, STEPS)
    assert fused.distillation_loss == alone.losses
    model, held_out = alone.finish(pool)
    assert fused.held_out == held_out
    for name, value in model.state_dict().items():
        assert torch.equal(fused.model.state_dict()[name], value), name
    # Seven steps over three turns: 2, 2 and 3, of which the last would serve nobody.
    assert recorded.count("adversary") == (4 if weight else 0)
    assert ("adversary" in fused.seconds) == (weight > 0)


def test_the_adversary_learns_turn_by_turn_on_the_pool_so_far(task, monkeypatch):
    goes, go_on = [], StudentTraining.go_on

    def watched(self, pool, steps):
        rate = self._distiller.scheduler.get_last_lr()[0]
        goes.append((self._stage, len(pool), steps, self._distiller.config.steps, rate))
        go_on(self, pool, steps)

    monkeypatch.setattr(StudentTraining, "go_on", watched)
    co_boosting(task)
    assert [go[:4] for go in goes] == [
        ("adversary", 3, 2, 4),
        ("adversary", 7, 2, 4),
        ("distillation", 11, 2, STEPS),
        ("distillation", 11, 2, STEPS),
        ("distillation", 11, 3, STEPS),
    ]
    # A schedule of its own begins anew where the student does.
    assert goes[2][4] == pytest.approx(goes[0][4], rel=0.5) and goes[1][4] < goes[0][4]


def test_the_student_never_sees_the_same_move_twice(task, monkeypatch):
    seen, go_on = [], StudentTraining.go_on

    def watched(self, pool, steps):
        seen.append(pool.images)
        go_on(self, pool, steps)

    monkeypatch.setattr(StudentTraining, "go_on", watched)
    co_boosting(task)
    plain = Pool(task.folder / "pool", task.model.num_patches).load().images
    looks = [images[:3] for images in (*seen, plain)]
    assert len(seen) == 5
    assert all(not torch.equal(a, b) for i, a in enumerate(looks) for b in looks[:i])


def test_moved_images_and_the_learned_ensemble_reach_the_student(task, monkeypatch):
    goes, go_on = [], StudentTraining.go_on

    def watched(self, pool, steps):
        goes.append((self._stage, pool.images, self._distiller.teacher.class_weights))
        go_on(self, pool, steps)

    monkeypatch.setattr(StudentTraining, "go_on", watched)
    task = under(task, perturbation=8.0)
    fused = co_boosting(task)
    plain = Pool(task.folder / "pool", task.model.num_patches).load().images
    width = 1 / SPEC.std[0]
    learned = fused.teacher.class_weights
    assert not torch.equal(learned, task.teacher.class_weights)
    for stage, images, weights in goes:
        moved = (images - plain[: len(images)]).abs()
        assert moved.max() <= 8 / 255 * width * 1.001 and (moved > 0).float().mean() > 0.5
        if stage == "distillation":
            assert torch.equal(weights, learned)
    adversary = [weights for stage, _, weights in goes if stage == "adversary"]
    assert not torch.equal(adversary[0], adversary[1])  # each turn's own ensemble


@both
def test_each_turn_asks_the_ensemble_as_it_is_by_then(task, method, monkeypatch):
    asked, noises = [], []
    generate, forward = shared.generate_batch, Generator.forward

    def watched(task, teacher, *rest):
        asked.append(teacher.class_weights.clone())
        noises.append(None)
        return generate(task, teacher, *rest)

    def noted(self, noise):
        noises[-1] = noise.clone() if noises[-1] is None else noises[-1]
        return forward(self, noise)

    monkeypatch.setattr(shared, "generate_batch", watched)
    monkeypatch.setattr(Generator, "forward", noted)
    method(task)
    own = task.teacher.class_weights
    assert len(asked) == 3 and torch.equal(asked[0], own)
    changes = method is co_boosting
    assert torch.equal(asked[1], own) != changes and torch.equal(asked[2], asked[1]) != changes
    firsts = [noise[:3] for noise in noises]
    assert all(not torch.equal(a, b) for i, a in enumerate(firsts) for b in firsts[:i])


@both
def test_nobody_is_asked_about_single_tokens(task, method, monkeypatch):
    asked, call = [], Teacher.__call__

    def watched(self, *arguments, **keywords):
        asked.append(keywords.get("patch_logits", False))
        return call(self, *arguments, **keywords)

    monkeypatch.setattr(Teacher, "__call__", watched)
    method(task)
    assert asked and not any(asked)


def test_the_weights_take_a_step_for_each_turns_images_so_far(task, monkeypatch):
    sizes, step = [], WeightedEnsemble.step

    def watched(self, images, targets, size):
        sizes.append((len(images), size))
        return step(self, images, targets, size)

    monkeypatch.setattr(WeightedEnsemble, "step", watched)
    co_boosting(task)
    # Turns of 3, 4 and 4 images; the pool is walked in fours.
    assert [count for count, _ in sizes] == [3, 4, 3, 4, 4, 3]
    assert {size for _, size in sizes} == {0.05}


@both
@pytest.mark.parametrize("combine", ["mean-logits", "confidence", "prior-probed"])
def test_the_uploads_and_the_teacher_are_not_changed(task, method, combine):
    task = under(task, combine=combine)
    weights = task.teacher.class_weights.clone()
    fused = method(task)
    for client, upload in zip(task.clients, task.uploads, strict=True):
        for name, value in upload.load_state().items():
            assert torch.equal(client.model.vit.state_dict()[name], value)
        assert all(not p.requires_grad and p.grad is None for p in client.model.parameters())
    for name, value in tiny_vit(40, torch.float32).state_dict().items():
        assert torch.equal(task.model.state_dict()[name], value)
    assert torch.equal(task.teacher.class_weights, weights)
    learned = not torch.equal(fused.teacher.normalised_weights, task.teacher.normalised_weights)
    assert learned == (method is co_boosting)


@both
def test_leaving_the_finite_numbers_is_one_sentence(task, method):
    torch.nn.init.constant_(task.clients[0].model.vit.head.weight, float("nan"))
    with pytest.raises(TrainingError, match="^generator.learning-rate = .* lower it.$"):
        method(task)


def test_a_learning_rate_far_too_high_is_named(task):
    with pytest.raises(TrainingError, match=r"generator.learning-rate = 1e\+30 made generator"):
        dense(under(task, learning_rate=1e30))


def test_no_token_is_taught_what_no_patch_was_stopped_for():
    ours = settings()
    assert ours.distillation.relabel == "token"
    assert class_token_only(ours).distillation == replace(ours.distillation, relabel="none")


def test_both_are_methods():
    assert METHODS["dense"].run is dense and METHODS["co-boosting"].run is co_boosting
