"""The objective's gradient: three ways to it, and a loop over images and clients as the oracle."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from fedmitr_app.config.schema import COMBINATIONS
from fedmitr_app.inversion.accel.ensemble_forward import EnsembleForward
from fedmitr_app.inversion.accel.microbatches import Microbatches
from fedmitr_app.inversion.losses import cross_entropy
from fedmitr_app.inversion.objective import Objective
from fedmitr_app.teacher import combine_logits
from tests.helpers.tiny import (
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
    {"members": members, "feature_match": weight}
    for members, weight in product((None, MEMBERS), (0.0, 0.7))
]


def name(terms: dict) -> str:
    used = {"members": terms["members"] is not None, "features": terms["feature_match"] > 0}
    return "+".join(key for key, value in used.items() if value) or "plain"


def inputs(batch: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of images at places of their own: ``[B, n, 16]`` and ``[B, n]``."""
    rng = torch.Generator().manual_seed(4)
    positions = torch.stack([torch.randperm(16, generator=rng)[:KEPT] for _ in range(batch)])
    patches = tiny_vit(0).patchify(random_images(batch))
    return patches.gather(1, positions.unsqueeze(-1).expand(-1, -1, 16)), positions


def class_means() -> torch.Tensor:
    """Draw what two clients' heads say, ``[2, C, D]``; the second lacks a class."""
    rng = torch.Generator().manual_seed(8)
    means = torch.randn(2, CLASSES, 16, generator=rng, dtype=torch.float64)
    means[1, 3] = 0
    return means


def objective(combine: str, members=None, feature_match=0.0, **changes) -> Objective:
    config = inversion_config(feature_match=feature_match, **changes)
    teacher = replace(tiny_teacher(combine), class_means=(*class_means(), None))
    return Objective(teacher, random_targets(BATCH), config, members)


def feature_prior(k: int, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Half the squared distance to the mean of the target's classes that client k holds."""
    if k == 2:  # whose head tells nothing
        return torch.zeros((), dtype=torch.float64)
    held = [c for c in range(CLASSES) if k == 0 or c != 3]
    share = sum(target[c] for c in held)
    wanted = sum(target[c] * class_means()[k, c] for c in held) / share
    return share * ((features - wanted) ** 2).mean() / 2


def oracle(objective: Objective, patches, positions):
    """Image by image, running only the clients that serve it: losses and plain autograd."""
    teacher, config = objective.teacher, objective.config
    patches = patches.clone().requires_grad_()
    losses = []
    for image in range(len(patches)):
        members = objective.members
        serving = [k for k in range(3) if members is None or members[k, image]]
        one = slice(image, image + 1)
        outputs = [teacher.models[k].forward_patches(patches[one], positions[one]) for k in serving]
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
        priors = [
            feature_prior(k, output.features[0], target[0])
            for k, output in zip(serving, outputs, strict=True)
        ]
        loss = loss + config.feature_match * sum(priors) / len(priors)
        losses.append(loss)
    losses = torch.cat(losses)
    return losses.detach(), torch.autograd.grad(losses.sum(), patches)[0]


@pytest.mark.parametrize("terms", TERMS, ids=name)
@pytest.mark.parametrize("combine", COMBINATIONS)
def test_joint_and_frugal_equal_the_oracle(combine, terms):
    patches, positions = inputs()
    built = objective(combine, **terms, gradient="joint")
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


@pytest.mark.parametrize("terms", TERMS, ids=name)
def test_per_teacher_equals_the_oracle(terms):
    patches, positions = inputs()
    built = objective("prior-probed", **terms, loss="per-teacher")
    found = built.gradient(patches, positions, True)
    loss, grad = oracle(built, patches, positions)
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.grad, grad)
    joint = objective("prior-probed", **terms).gradient(patches, positions, True)
    torch.testing.assert_close(found.logits, joint.logits)
    torch.testing.assert_close(found.cls_attn, joint.cls_attn)


@pytest.mark.parametrize("gradient", ["joint", "frugal"])
@pytest.mark.parametrize("loss", ["ensemble", "per-teacher"])
def test_an_images_loss_and_gradient_do_not_depend_on_its_batch(loss, gradient):
    whole = objective("confidence", MEMBERS, 0.7, loss=loss, gradient=gradient)
    patches, positions = inputs()
    together = whole.gradient(patches, positions, True)
    for rows in (slice(0, 1), slice(1, 3)):
        part = Objective(whole.teacher, whole.targets[rows], whole.config, MEMBERS[:, rows])
        apart = part.gradient(patches[rows], positions[rows], True)
        torch.testing.assert_close(apart.loss, together.loss[rows])
        torch.testing.assert_close(apart.grad, together.grad[rows])
        torch.testing.assert_close(apart.logits, together.logits[rows])
        torch.testing.assert_close(apart.cls_attn, together.cls_attn[:, rows])


@pytest.mark.parametrize("gradient", ["joint", "frugal"])
@pytest.mark.parametrize("loss", ["ensemble", "per-teacher"])
def test_who_does_not_serve_an_image_has_no_influence(loss, gradient):
    built = objective("mean-softmax", MEMBERS, 0.7, loss=loss, gradient=gradient)
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
    built = objective("prior-confidence", members, 0.7)
    loss, grad = oracle(built, *inputs())
    found = built.gradient(*inputs(), attention=True)
    torch.testing.assert_close(found.loss, loss, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.grad, grad, rtol=1e-5, atol=1e-7)


def test_attention_comes_only_when_asked_for():
    for changes in ({"gradient": "joint"}, {"gradient": "frugal"}, {"loss": "per-teacher"}):
        built = objective("mean-logits", **changes)
        assert built.gradient(*inputs()).cls_attn is None
        assert built.gradient(*inputs(), attention=True).cls_attn.shape == (3, BATCH, KEPT)


# --- less memory


def short_of_memory(monkeypatch, most):
    """Let models run out of memory with more than so many images."""
    run, sizes = EnsembleForward.run, []

    def limited(self, k, patches, position_idx, attention):
        if len(patches) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(patches))
        return run(self, k, patches, position_idx, attention)

    monkeypatch.setattr(EnsembleForward, "run", limited)
    return sizes


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("loss", ["ensemble", "per-teacher"])
def test_a_batch_that_is_too_large_is_halved_and_gives_the_same(
    monkeypatch, caplog, most, attention, loss
):
    built = objective("prior-probed", MEMBERS, 0.7, loss=loss)
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
    built = objective("mean-logits")
    run, shown = EnsembleForward.run, []

    def limited(self, k, patches, position_idx, attention):
        if patches.shape[:2].numel() > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        shown.append(tuple(patches.shape[:2]))
        return run(self, k, patches, position_idx, attention)

    parts, (patches, positions) = Microbatches(built), inputs()
    whole = [built.gradient(patches[:, :n], positions[:, :n]).grad for n in (6, 3)]
    monkeypatch.setattr(EnsembleForward, "run", limited)
    for n, expected in zip((6, 3), whole, strict=True):
        for _ in range(2):
            found = parts.gradient(patches[:, :n], positions[:, :n]).grad
            torch.testing.assert_close(found, expected)
    assert max(size for size in shown if size[1] == 6) == (2, 6)
    assert max(size for size in shown if size[1] == 3) == (3, 3)


def test_an_image_that_is_too_large_is_an_error(monkeypatch):
    short_of_memory(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        Microbatches(objective("mean-logits")).gradient(*inputs())
