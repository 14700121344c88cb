"""K models as batched products: what each of them gives by itself."""

import copy

import pytest
import torch
from timm.layers import GluMlp
from timm.models.vision_transformer import VisionTransformer

from fedmitr_app.config import parse_config
from fedmitr_app.errors import ConfigError
from fedmitr_app.inversion import invert_batch
from fedmitr_app.inversion.accel.ensemble_forward import EnsembleForward
from fedmitr_app.models import InputSpec, PatchViT, StackedViT, stacked
from fedmitr_app.teacher import Teacher
from fedmitr_app.utils.randomness import generator
from tests.helpers.tiny import (
    inversion_config,
    random_images,
    random_targets,
    shake,
    tiny_teacher,
    tiny_vit,
)

COLOUR = InputSpec(16, 3, (0.4,), (0.3,))


def vit(seed: int = 0, **changes) -> PatchViT:
    """A plain one of 16 px and colour, or with timm's optional parts."""
    plain = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    made = VisionTransformer(**{**plain, "num_classes": 5, **changes})
    shake(made, seed)
    return PatchViT(made.double(), COLOUR).eval().requires_grad_(False)


@pytest.mark.parametrize("wanted", [{}, {"attention": True}], ids=str)
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"num_heads": 4, "depth": 3}])
def test_each_model_gives_what_it_gives_by_itself(changes, wanted):
    models = [vit(seed, **changes) for seed in range(3)]
    rng = torch.Generator().manual_seed(1)
    patches = torch.randn(3, 5, 7, 48, generator=rng, dtype=torch.float64, requires_grad=True)
    places = torch.stack([torch.randperm(16, generator=rng)[:7] for _ in range(15)])
    places = places.reshape(3, 5, 7)
    assert StackedViT.fits(models)
    seen = StackedViT(models).forward_patches(patches, places, **wanted)
    for k, model in enumerate(models):
        alone = model.forward_patches(patches[k], places[k], **wanted)
        for found, expected in zip(seen, alone, strict=True):
            assert (found is None) == (expected is None)
            if found is not None:
                torch.testing.assert_close(found[k], expected)
    (grad,) = torch.autograd.grad(seen.logits.square().sum(), patches)
    alone = [model.forward_patches(patches[k], places[k]) for k, model in enumerate(models)]
    total = sum(output.logits.square().sum() for output in alone)
    torch.testing.assert_close(grad, torch.autograd.grad(total, patches)[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"init_values": 0.1},
        {"qk_norm": True},
        {"reg_tokens": 2},
        {"no_embed_class": True},
        {"pre_norm": True},
        {"fc_norm": True},
        {"mlp_layer": GluMlp},
    ],
)
def test_optional_parts_do_not_stack(changes):
    assert not StackedViT.fits([vit(0, **changes), vit(1, **changes)])


@pytest.mark.parametrize(
    "changes",
    [{"depth": 3}, {"embed_dim": 32}, {"num_heads": 4}, {"act_layer": "relu"}],
)
def test_models_of_different_architectures_do_not_stack(changes):
    assert StackedViT.fits([vit(0), vit(1)])
    assert StackedViT.fits([vit(0, **changes), vit(1, **changes)])
    assert not StackedViT.fits([vit(0), vit(1, **changes)])


@pytest.mark.parametrize("members", [None, [[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 1, 1]]])
def test_an_inversion_makes_the_same_images(members):
    members = None if members is None else torch.tensor(members).bool()
    made = {}
    for ensemble in ("loop", "stacked"):
        config = inversion_config(ensemble=ensemble, iterations=12)
        made[ensemble] = invert_batch(
            tiny_teacher("prior-probed"),
            random_images(4),
            random_targets(4),
            config,
            generator(0, "test"),
            members=members,
        )
    one, other = made["loop"], made["stacked"]
    torch.testing.assert_close(one.images, other.images, rtol=1e-6, atol=1e-6)
    assert torch.equal(one.keep_idx, other.keep_idx)
    assert one.curves["loss"] == pytest.approx(other.curves["loss"])


@pytest.mark.parametrize("rounded", [False, True])
def test_stacked_half_width_products_are_those_of_each_model(rounded):
    models = []
    for seed in range(3):
        whole = vit(seed).float()
        models.append(PatchViT(whole.vit, COLOUR, "bfloat16").eval().requires_grad_(False))
    rng = torch.Generator().manual_seed(1)
    patches = torch.randn(3, 5, 16, 48, generator=rng, requires_grad=True)
    places = torch.arange(16).expand(3, 5, 16)
    alone = [model.forward_patches(patches[k], places[k]) for k, model in enumerate(models)]
    stack = StackedViT([model.rounded() for model in models] if rounded else models)
    seen = stack.forward_patches(patches, places)
    assert seen.logits.dtype == torch.float32
    assert stack.weights["blocks.1.mlp.fc1.weight"].dtype == torch.bfloat16
    expected = torch.stack([output.logits for output in alone])
    both = seen.logits, expected
    grads = [torch.autograd.grad(each.square().sum(), patches)[0] for each in both]
    for found, other in (both, grads):
        # bfloat16 has eight bits: through two blocks and back either way rounds by 1 to 3 % of
        # the gradient, on each processor a little otherwise.
        assert (found - other).norm() < 0.08 * other.norm()


def watched(monkeypatch, clients=3, most=2**20, members=None, teacher=None, **changes):
    """Invert and tell of how many patches stacked models were shown, step by step."""
    seen, plain = [], StackedViT.forward_patches

    def forward_patches(self, patches, *arguments, **keywords):
        seen.append(patches.shape[2])
        return plain(self, patches, *arguments, **keywords)

    monkeypatch.setattr(StackedViT, "forward_patches", forward_patches)
    monkeypatch.setitem(stacked.HIDDEN_BYTES, "cpu", most)
    config = inversion_config(ensemble="auto", iterations=8, **changes)
    teacher, rng = teacher or tiny_teacher(clients=clients), generator(0, "test")
    members = None if members is None else torch.tensor(members).bool()
    invert_batch(teacher, random_images(4), random_targets(4), config, rng, members=members)
    return seen


def test_small_work_is_stacked_and_large_work_is_not(monkeypatch):
    assert watched(monkeypatch) == [16, 16, 11, 11, 11, 7, 7, 7]
    # A hidden layer of 32 doubles: 4 images of 12 tokens, the class tokens among them.
    assert watched(monkeypatch, most=4 * 12 * 32 * 8) == [11, 11, 11, 7, 7, 7]
    assert watched(monkeypatch, most=0) == []


def test_nothing_is_stacked_where_there_is_nothing_to_gain(monkeypatch):
    assert watched(monkeypatch, clients=1) == []
    assert watched(monkeypatch, gradient="frugal") == []
    compiled, half = tiny_teacher(), tiny_teacher(dtype=torch.float64)
    for model in compiled.models:
        model.compiled = True
    assert not compiled.stackable and half.stackable
    for model in half.models:
        model.precision = "bfloat16"
    assert not EnsembleForward(half.models).stacking_pays(torch.zeros(4, 4, 16))
    monkeypatch.setattr(stacked, "WEIGHT_BYTES", 1000)
    assert watched(monkeypatch) == []


def test_a_client_that_serves_nearly_all_is_not_waited_for_by_the_others(monkeypatch):
    even = [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert len(watched(monkeypatch, members=even)) == 8
    # Of twelve images shown only six would count.
    assert watched(monkeypatch, members=[[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0]]) == []


def test_models_that_do_not_stack_run_one_by_one():
    teacher = tiny_teacher()
    mixed = copy.copy(teacher)
    object.__setattr__(mixed, "models", (*teacher.models[:2], tiny_vit(5).requires_grad_(False)))
    mixed.models[2].vit.no_embed_class = True
    assert mixed.stack is None and teacher.stack is not None


@pytest.mark.parametrize("ensemble", ["auto", "stacked"])
@pytest.mark.parametrize("members", [None, torch.tensor([[1, 1, 0], [0, 1, 1]]).bool()])
def test_mixed_architectures_are_inverted_together(ensemble, members):
    """Two depths and widths; each image's teacher is whoever serves it."""
    models = (vit(0), vit(1, embed_dim=32, depth=3, num_heads=4))
    teacher = Teacher(models, "mean-softmax", torch.ones(2, 5, dtype=torch.float64))
    assert teacher.stack is None
    images, targets = random_images(3, spec=COLOUR), random_targets(3)
    made = {}
    for how in ("loop", ensemble):
        config, rng = inversion_config(ensemble=how, iterations=12), generator(0, "test")
        made[how] = invert_batch(teacher, images, targets, config, rng, members=members)
    assert torch.equal(made["loop"].images, made[ensemble].images)
    # Both were asked: the second one's answers are not the first one's.
    alone = invert_batch(
        Teacher(models[:1], "mean-softmax", torch.ones(1, 5, dtype=torch.float64)),
        images,
        targets,
        config,
        generator(0, "test"),
    )
    assert not torch.equal(alone.images, made["loop"].images)


@pytest.mark.parametrize("other", [{"loss": "per-teacher"}, {"gradient": "frugal"}])
def test_what_runs_models_one_by_one_is_not_stacked(other):
    changes = {f"inversion.{key}": value for key, value in other.items()}
    with pytest.raises(ConfigError, match="inversion.ensemble = 'stacked' .* 'loop'"):
        parse_config({"inversion.ensemble": "stacked", **changes})
