"""Float32 linear maps through oneDNN: torch's own numbers, gradients of any order, fallbacks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmitr_app.errors import ModelError
from fedmitr_app.models import OffloadedViT, PatchViT, onednn
from fedmitr_app.models.onednn import OneDNN, linear
from tests.helpers.tiny import random_images, tiny_vit

needs_onednn = pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def counted(monkeypatch) -> list[torch.Size]:
    """Note what goes through oneDNN."""
    seen, plain = [], onednn._Linear.apply

    def apply(*parts):
        seen.append(parts[1].shape)
        return plain(*parts)

    monkeypatch.setattr(onednn._Linear, "apply", apply)
    return seen


def answers(seen, weight, bias, how):
    """Output, gradients, and a gradient's gradient."""
    leaves = [part.clone().requires_grad_() for part in (seen, weight, bias) if part is not None]
    out = how(*leaves)
    upstream = random(*out.shape, seed=9)
    first = torch.autograd.grad((out.sin() * upstream).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(grad.square().sum() for grad in first), leaves)
    return [out, *first, *second]


@needs_onednn
@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    width=st.integers(1, 33),
    out=st.integers(1, 33),
    with_bias=st.booleans(),
)
def test_it_is_torchs_own_map_with_its_gradients(rows, width, out, with_bias):
    seen, weight = random(*rows, width), random(out, width, seed=1)
    bias = random(out, seed=2) if with_bias else None
    pairs = zip(answers(seen, weight, bias, linear), answers(seen, weight, bias, F.linear))
    for found, expected in pairs:
        assert (found - expected).norm() <= 1e-4 * (1 + expected.norm())


@needs_onednn
def test_what_lies_otherwise_in_memory_gives_the_same():
    whole = random(3, 5, 16)
    weight = random(8, 16, seed=1)
    for seen in (whole[:, :1], whole[:, ::2], whole[:1].expand(4, -1, -1), whole.mT[..., :5].mT):
        torch.testing.assert_close(linear(seen, weight), F.linear(seen, weight))


@needs_onednn
def test_a_frozen_map_keeps_nothing_of_what_it_was_shown(monkeypatch):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part) or part, id):
        linear(random(2, 3).requires_grad_(), random(4, 3, seed=1))
    assert [tuple(part.shape) for part in kept] == [(4, 3)]


@pytest.mark.parametrize("why", ["double", "half", "no rows", "autocast", "absent"])
def test_what_onednn_cannot_do_is_done_by_torch(monkeypatch, why):
    seen = counted(monkeypatch)
    part, weight = random(2, 3), random(4, 3, seed=1)
    if why in ("double", "half"):
        kind = torch.float64 if why == "double" else torch.bfloat16
        part, weight = part.to(kind), weight.to(kind)
    if why == "no rows":
        part = part[:0]
    if why == "absent":
        monkeypatch.setattr(onednn, "available", lambda: False)
    with torch.autocast("cpu", torch.bfloat16, enabled=why == "autocast"):
        assert torch.equal(linear(part, weight), F.linear(part, weight))
    assert seen == []


def model(matmul: str = "onednn", **changes) -> PatchViT:
    whole = tiny_vit(0, torch.float32)
    return PatchViT(whole.vit, whole.spec, matmul=matmul, **changes).eval()


@needs_onednn
@pytest.mark.parametrize("wanted", [{}, {"patch_logits": True, "attention": True}])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_answers_and_learns_the_same_either_way(monkeypatch, wanted, frozen):
    found = {}
    seen = counted(monkeypatch)
    for matmul in ("torch", "onednn"):
        made = model(matmul).requires_grad_(not frozen)
        images = random_images(5).float().requires_grad_()
        output = made(images, torch.tensor([[0, 3, 7]]).expand(5, -1), **wanted)
        output.logits.logsumexp(1).sum().backward()
        parts = [part for part in output if part is not None]
        weights = [value.grad for value in made.vit.parameters() if value.grad is not None]
        assert bool(weights) is not frozen
        found[matmul] = [*parts, images.grad, *weights]
        assert bool(seen) is (matmul == "onednn")
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_map_outside_of_a_models_products_is_torchs(monkeypatch):
    seen = counted(monkeypatch)
    with OneDNN():
        torch.nn.Linear(3, 4)(random(2, 3))
    assert len(seen) == onednn.available()
    torch.nn.Linear(3, 4)(random(2, 3))
    assert len(seen) == onednn.available()


def test_compiled_models_and_other_devices_keep_torchs_products():
    assert isinstance(model().matmul_context("cpu"), OneDNN)
    assert not isinstance(model("torch").matmul_context("cpu"), OneDNN)
    assert not isinstance(model().matmul_context("cuda"), OneDNN)
    assert not isinstance(model(compiled=True).matmul_context("cpu"), OneDNN)
    half = model()
    half.precision = "bfloat16"
    assert not isinstance(half.matmul_context("cpu"), OneDNN)


def test_copies_multiply_as_their_model_does():
    assert copy.deepcopy(model()).matmul == OffloadedViT(model()).matmul == "onednn"


def test_another_way_is_refused():
    with pytest.raises(ModelError, match="matmul = 'mkl' is not allowed: .* 'torch' or 'onednn'"):
        model("mkl")
