"""The objective's gradient: three ways to it, and a loop over images and clients as the oracle."""

from dataclasses import replace
from itertools import combinations, product

import pytest
import torch

from fedmitr_app.config import parse_config
from fedmitr_app.config.schema import COMBINATIONS
from fedmitr_app.errors import ConfigError
from fedmitr_app.inversion.losses import cross_entropy, jensen_shannon, patch_similarity_entropy
from fedmitr_app.inversion.microbatches import Microbatches
from fedmitr_app.inversion.objective import Objective, draw_asked
from fedmitr_app.inversion.serving import Serving
from fedmitr_app.teacher import Teacher, combine_logits
from tests.inversion.tiny import (
    CLASSES,
    inversion_config,
    random_images,
    random_targets,
    tiny_teacher,
    tiny_vit,
)

BATCH, KEPT = 3, 9
MEMBERS = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])
TERMS = [
    {"members": members, "disagreement": disagreement, "similarity": similarity}
    for members, disagreement, similarity in product((None, MEMBERS), (0.0, 0.6), (0.0, 0.4))
]


def name(terms: dict) -> str:
    used = {"members": terms["members"] is not None, "JS": terms["disagreement"] > 0}
    used["similarity"] = terms["similarity"] > 0
    return "+".join(key for key, value in used.items() if value) or "plain"


def inputs(batch: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of images at places of their own: ``[B, n, 16]`` and ``[B, n]``."""
    rng = torch.Generator().manual_seed(4)
    positions = torch.stack([torch.randperm(16, generator=rng)[:KEPT] for _ in range(batch)])
    patches = tiny_vit(0).patchify(random_images(batch))
    return patches.gather(1, positions.unsqueeze(-1).expand(-1, -1, 16)), positions


def objective(combine: str, terms: dict, **changes) -> Objective:
    config = inversion_config(
        disagreement=terms["disagreement"], similarity=terms["similarity"], **changes
    )
    student = tiny_vit(17).requires_grad_(False)
    return Objective(
        tiny_teacher(combine), random_targets(BATCH), config, terms["members"], student
    )


def oracle(objective: Objective, patches, positions):
    """Image by image, running only the clients that serve it: losses and plain autograd."""
    teacher, config = objective.teacher, objective.config
    patches = patches.clone().requires_grad_()
    losses = []
    for image in range(len(patches)):
        members = objective.members
        serving = [k for k in range(3) if members is None or members[k, image]]
        one = slice(image, image + 1)
        outputs = [
            teacher.models[k].forward_patches(patches[one], positions[one], patch_tokens=True)
            for k in serving
        ]
        target, weights = objective.targets[one], teacher.class_weights[serving]
        if config.loss == "per-teacher":
            shares = teacher.class_weights / teacher.class_weights.sum(0)
            known = [(shares[k] * target[0]).sum() for k in serving]
            own = [cross_entropy(output.logits, target) for output in outputs]
            loss = sum(share * part for share, part in zip(known, own)) / sum(known)
        else:
            stacked = torch.stack([output.logits for output in outputs])
            combined = combine_logits(stacked, teacher.combine, weights)
            loss = cross_entropy(combined, target)
            if config.disagreement:
                seen = objective.student.forward_patches(patches[one], positions[one]).logits
                loss = loss - config.disagreement * jensen_shannon(seen, combined)
        priors = [patch_similarity_entropy(output.patch_tokens) for output in outputs]
        loss = loss + config.similarity * sum(priors) / len(priors)
        losses.append(loss)
    losses = torch.cat(losses)
    return losses.detach(), torch.autograd.grad(losses.sum(), patches)[0]


@pytest.mark.parametrize("terms", TERMS, ids=name)
@pytest.mark.parametrize("combine", COMBINATIONS)
def test_joint_and_frugal_equal_the_oracle(combine, terms):
    patches, positions = inputs()
    built = objective(combine, terms, gradient="joint")
    joint = built.gradient(patches, positions, True)
    config = replace(built.config, gradient="frugal")
    frugal = replace(built, config=config).gradient(patches, positions, True)
    loss, grad = oracle(built, patches, positions)
    # The mean of probabilities keeps a floor of 1e-8 under each client's weight.
    close = {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(joint.loss, loss, **close)
    torch.testing.assert_close(joint.grad, grad, **close)
    for found, expected in zip(frugal, joint):
        torch.testing.assert_close(found, expected)
    assert not any(part.requires_grad for part in (*joint, *frugal))


@pytest.mark.parametrize(
    "terms", [terms for terms in TERMS if not terms["disagreement"]], ids=name
)
def test_per_teacher_equals_the_oracle(terms):
    patches, positions = inputs()
    built = objective("prior-probed", terms, loss="per-teacher")
    found = built.gradient(patches, positions, True)
    loss, grad = oracle(built, patches, positions)
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.grad, grad)
    joint = objective("prior-probed", terms).gradient(patches, positions, True)
    torch.testing.assert_close(found.logits, joint.logits)
    torch.testing.assert_close(found.cls_attn, joint.cls_attn)


def class_means() -> torch.Tensor:
    """Draw what two clients' heads say, ``[2, C, D]``; the second lacks a class."""
    rng = torch.Generator().manual_seed(8)
    means = torch.randn(2, CLASSES, 16, generator=rng, dtype=torch.float64)
    means[1, 3] = 0
    return means


@pytest.mark.parametrize("members", [None, MEMBERS], ids=["all", "members"])
@pytest.mark.parametrize(
    ("gradient", "loss"),
    [("joint", "ensemble"), ("frugal", "ensemble"), ("joint", "per-teacher")],
)
def test_features_are_pulled_to_the_class_means_that_heads_tell(gradient, loss, members):
    terms = {"members": members, "disagreement": 0.0, "similarity": 0.4}
    plain = objective("mean-logits", terms, gradient=gradient, loss=loss)
    means = class_means()
    told = replace(plain.teacher, class_means=(*means, None))
    pulled = replace(plain, teacher=told, config=replace(plain.config, feature_match=0.7))
    patches, positions = inputs()
    before, found = (each.gradient(patches, positions) for each in (plain, pulled))

    patches = patches.clone().requires_grad_()
    losses = []
    for image, target in enumerate(plain.targets):
        serving = [k for k in range(3) if members is None or members[k, image]]
        total = 0.0
        for k in set(serving) - {2}:  # whose head tells nothing
            one = slice(image, image + 1)
            model = plain.teacher.models[k]
            features = model.forward_patches(patches[one], positions[one]).features
            held = [c for c in range(CLASSES) if k == 0 or c != 3]
            share = sum(target[c] for c in held)
            wanted = sum(target[c] * means[k, c] for c in held) / share
            total = total + share * ((features[0] - wanted) ** 2).mean() / 2
        losses.append(0.7 * total / len(serving))
    losses = torch.stack(losses)
    (grad,) = torch.autograd.grad(losses.sum(), patches)
    torch.testing.assert_close(found.loss - before.loss, losses.detach())
    torch.testing.assert_close(found.grad - before.grad, grad)


@pytest.mark.parametrize("gradient", ["joint", "frugal"])
@pytest.mark.parametrize("loss", ["ensemble", "per-teacher"])
def test_an_images_loss_and_gradient_do_not_depend_on_its_batch(loss, gradient):
    terms = {"members": MEMBERS, "disagreement": 0.0, "similarity": 0.4}
    whole = objective("confidence", terms, loss=loss, gradient=gradient)
    patches, positions = inputs()
    together = whole.gradient(patches, positions, True)
    for rows in (slice(0, 1), slice(1, 3)):
        part = Objective(
            whole.teacher, whole.targets[rows], whole.config, MEMBERS[:, rows], whole.student
        )
        apart = part.gradient(patches[rows], positions[rows], True)
        torch.testing.assert_close(apart.loss, together.loss[rows])
        torch.testing.assert_close(apart.grad, together.grad[rows])
        torch.testing.assert_close(apart.logits, together.logits[rows])
        torch.testing.assert_close(apart.cls_attn, together.cls_attn[:, rows])


@pytest.mark.parametrize("gradient", ["joint", "frugal"])
@pytest.mark.parametrize("loss", ["ensemble", "per-teacher"])
def test_who_does_not_serve_an_image_has_no_influence(loss, gradient):
    terms = {"members": MEMBERS, "disagreement": 0.0, "similarity": 0.4}
    built = objective("mean-softmax", terms, loss=loss, gradient=gradient)
    patches, positions = inputs()
    before = built.gradient(patches, positions, True)
    with torch.no_grad():
        for parameter in built.teacher.models[1].parameters():
            parameter.mul_(-2)
    after = built.gradient(patches, positions, True)
    for image in range(BATCH):
        same = torch.equal(before.grad[image], after.grad[image])
        assert same == (not MEMBERS[1, image])


def test_a_client_may_serve_no_image_of_a_batch():
    members = torch.tensor([[True] * BATCH, [False] * BATCH, [True] * BATCH])
    terms = {"members": members, "disagreement": 0.0, "similarity": 0.4}
    built = objective("prior-confidence", terms)
    loss, grad = oracle(built, *inputs())
    found = built.gradient(*inputs(), attention=True)
    torch.testing.assert_close(found.loss, loss, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.grad, grad, rtol=1e-5, atol=1e-7)


def test_a_pushed_student_disagrees_more():
    patches, positions = inputs()
    terms = {"members": None, "disagreement": 5.0, "similarity": 0.0}
    built = objective("mean-logits", terms)

    def divergence(at: torch.Tensor) -> float:
        combined = built.gradient(at, positions).logits
        student = built.student.forward_patches(at, positions).logits
        return float(jensen_shannon(student, combined).sum())

    towards = patches - 1e-3 * built.gradient(patches, positions).grad
    assert divergence(towards) > divergence(patches)


@pytest.mark.parametrize("similarity", [0.0, 0.4])
@pytest.mark.parametrize("some", [1, 2])
def test_who_is_asked_stands_for_everybody_in_the_mean(some, similarity):
    """Over every choice of as many clients the gradients' mean is the whole one: no bias."""
    terms = {"members": None, "disagreement": 0.0, "similarity": similarity}
    whole, (patches, positions) = objective("prior-probed", terms, loss="per-teacher"), inputs()
    exact = whole.gradient(patches, positions)
    choices = list(combinations(range(3), some))
    losses, grads = [], []
    for chosen in choices:
        asked = torch.zeros(3, BATCH, dtype=torch.bool)
        asked[list(chosen)] = True
        one = whole.gradient(patches, positions, asked=asked)
        losses.append(one.loss)
        grads.append(one.grad)
    torch.testing.assert_close(torch.stack(losses).mean(0), exact.loss)
    torch.testing.assert_close(torch.stack(grads).mean(0), exact.grad)
    assert not torch.allclose(grads[0], exact.grad)


def test_everybody_is_as_likely_to_be_asked():
    config, rng = inversion_config(teachers_per_step=2), torch.Generator().manual_seed(0)
    asked = draw_asked(tiny_teacher(clients=5), config, 4000, rng)
    assert asked.shape == (5, 4000) and (asked.sum(0) == 2).all()
    assert (asked.double().mean(1) - 0.4).abs().max() < 0.04
    assert draw_asked(tiny_teacher(clients=2), config, 4, rng) is None
    assert draw_asked(tiny_teacher(), inversion_config(), 4, rng) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "ensemble"}, "inversion.teachers-per-step = 2 .* no unbiased"),
        ({"teachers-per-image": 2}, "inversion.teachers-per-step = 2 .* by one of the two"),
        ({"early-stop": 0.5}, "inversion.early-stop = 0.5 .* the whole teacher's answer"),
    ],
)
def test_a_part_of_the_ensemble_is_refused_where_it_misleads(changes, words):
    settings = {"teachers-per-step": 2, "teachers-per-image": 0, "loss": "per-teacher"}
    assert parse_config({f"inversion.{key}": value for key, value in settings.items()})
    with pytest.raises(ConfigError, match=words):
        parse_config({f"inversion.{key}": value for key, value in {**settings, **changes}.items()})


def test_attention_comes_only_when_asked_for():
    terms = {"members": None, "disagreement": 0.0, "similarity": 0.0}
    for changes in ({"gradient": "joint"}, {"gradient": "frugal"}, {"loss": "per-teacher"}):
        built = objective("mean-logits", terms, **changes)
        assert built.gradient(*inputs()).cls_attn is None
        assert built.gradient(*inputs(), attention=True).cls_attn.shape == (3, BATCH, KEPT)


def test_a_term_that_per_teacher_losses_cannot_have_is_refused():
    # It needs the ensemble's answer, which one model at a time doesn't give.
    with pytest.raises(ConfigError, match="inversion.disagreement = 0.5 .* 'per-teacher'"):
        parse_config(
            {
                "inversion.loss": "per-teacher",
                "inversion.disagreement": 0.5,
                "inversion.rounds": 2,
            }
        )


# --- less memory


def short_of_memory(monkeypatch, most):
    """Let models run out of memory with more than so many images."""
    run, sizes = Serving.run, []

    def limited(self, k, patches, position_idx, attention):
        if len(patches) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(patches))
        return run(self, k, patches, position_idx, attention)

    monkeypatch.setattr(Serving, "run", limited)
    return sizes


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("loss", ["ensemble", "per-teacher"])
def test_a_batch_that_is_too_large_is_halved_and_gives_the_same(
    monkeypatch, caplog, most, attention, loss
):
    terms = {"members": MEMBERS, "disagreement": 0.0, "similarity": 0.4}
    built = objective("prior-probed", terms, loss=loss)
    patches, positions = inputs()
    whole = built.gradient(patches, positions, attention)
    sizes = short_of_memory(monkeypatch, most)
    parts = Microbatches(built)
    for _ in range(2):
        for found, expected in zip(parts.gradient(patches, positions, attention), whole):
            assert (found is None) == (expected is None)
            if expected is not None:
                torch.testing.assert_close(found, expected)
    assert set(sizes) <= set(range(1, most + 1))
    # Found once, and kept to.
    assert caplog.text.count("out of memory") == (1 if most == 2 else 2)


def test_where_patches_have_stopped_larger_parts_are_tried_again(monkeypatch):
    built = objective("mean-logits", {"members": None, "disagreement": 0.0, "similarity": 0.0})
    run, shown = Serving.run, []

    def limited(self, k, patches, position_idx, attention):
        if patches.shape[:2].numel() > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        shown.append(tuple(patches.shape[:2]))
        return run(self, k, patches, position_idx, attention)

    parts, (patches, positions) = Microbatches(built), inputs()
    whole = [built.gradient(patches[:, :n], positions[:, :n]).grad for n in (6, 3)]
    monkeypatch.setattr(Serving, "run", limited)
    for n, expected in zip((6, 3), whole, strict=True):
        for _ in range(2):
            found = parts.gradient(patches[:, :n], positions[:, :n]).grad
            torch.testing.assert_close(found, expected)
    assert max(size for size in shown if size[1] == 6) == (2, 6)
    assert max(size for size in shown if size[1] == 3) == (3, 3)


def test_an_image_that_is_too_large_is_an_error(monkeypatch):
    terms = {"members": None, "disagreement": 0.0, "similarity": 0.0}
    short_of_memory(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        Microbatches(objective("mean-logits", terms)).gradient(*inputs())
