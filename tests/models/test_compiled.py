"""Blocks that run compiled: the same answers and gradients, from few compilations."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from fedmitr_app.errors import ConfigError
from fedmitr_app.models import OffloadedViT, require_compiler
from tests.helpers.tiny import random_images, tiny_vit

CPU = torch.device("cpu")


def answers(model, images, keep_idx):
    """All that a model gives and its gradient, with the patches' tokens and without."""
    found = []
    for wanted in ({}, {"patch_logits": True, "attention": True}):
        seen = images.clone().requires_grad_()
        output = model(seen, keep_idx, **wanted)
        (grad,) = torch.autograd.grad(output.logits.logsumexp(1).sum(), seen)
        found += [*(part for part in output if part is not None), grad]
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_models_answer_as_plain_ones_and_share_their_compilations(monkeypatch):
    plain = [tiny_vit(seed).requires_grad_(False) for seed in range(3)]
    compiled = [copy.deepcopy(model) for model in plain]
    for model in compiled:
        model.compiled = True
    counters.clear()
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    for batch, count in [(4, 16), (4, 13), (3, 14), (5, 9)]:
        images = random_images(batch)
        order = torch.rand(batch, 16, generator=torch.Generator().manual_seed(count)).argsort(1)
        keep_idx = order[:, :count]
        for one, other in zip(plain, compiled, strict=True):
            for kind in (other, OffloadedViT(other)):
                pairs = zip(answers(one, images, keep_idx), answers(kind, images, keep_idx))
                for expected, found in pairs:
                    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    # 3 models, 2 and 3 calls each, at 4 sizes, of two kinds: one by one they would be 120.
    assert 2 <= counters["stats"]["unique_graphs"] <= 16


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_half_width_products_stay_half_width_where_they_are_compiled():
    plain = tiny_vit(0, torch.float32).requires_grad_(False)
    full, plain.precision = answers(plain, random_images(4).float(), None), "bfloat16"
    compiled = copy.deepcopy(plain)
    compiled.compiled = True
    halves = [answers(model, random_images(4).float(), None) for model in (plain, compiled)]
    for exact, half, found in zip(full, *halves, strict=True):
        assert found.dtype == torch.float32
        near = 2 * (half - exact).abs().max()
        assert 0 < (found - exact).abs().max() <= near


def test_without_a_compiler_one_sentence_says_so(monkeypatch):
    wrapped = RuntimeError("backend='inductor' raised:\nand more")
    wrapped.inner_exception = OSError("no C++ compiler\nand a long trace")
    told = "server.compile = True is not allowed: .* doesn't work on cpu here "
    for error, reason in [
        (RuntimeError("no C++ compiler\nand a long trace"), r"\(no C\+\+ compiler\)"),
        (wrapped, r"\(no C\+\+ compiler\)"),
        (AssertionError(), r"\(AssertionError\)"),
    ]:

        def nothing_there(function, error=error):
            raise error

        monkeypatch.setattr(torch, "compile", nothing_there)
        with pytest.raises(ConfigError, match=told + reason):
            require_compiler(CPU)
