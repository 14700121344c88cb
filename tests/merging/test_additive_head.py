"""Class means less what each client shifts all of its classes by."""

import pytest
import torch
from torch import nn

from fedmitr_app.config import MergeConfig
from fedmitr_app.merging import Mergeable, merge
from fedmitr_app.merging.additive import RIDGE, class_effects
from fedmitr_app.training import set_class_means
from tests.helpers.merges import drawn, sent, unasked

ADDITIVE = MergeConfig(head="additive")
COUNTS = torch.tensor([[20, 10, 0, 0, 0], [0, 5, 10, 4, 0], [3, 0, 0, 30, 0]])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clients(tmp_path, shift: float):
    """Heads of class means: features of a class plus the client's own shift, without scatter."""
    classes, shifts = 0.1 * draw(5, 4), 0.1 * shift * draw(3, 4, seed=1)
    states = []
    for own, moved in zip(COUNTS, shifts):
        labels = torch.repeat_interleave(torch.arange(5), own)
        head = nn.Linear(4, 5)
        set_class_means(head, (classes[labels] + moved).float(), labels, by_share=True)
        states.append(drawn(0) | {f"head.{k}": v.detach() for k, v in head.named_parameters()})
    uploads = sent(tmp_path, states, sizes=COUNTS.sum(1).tolist())
    return classes, shifts, Mergeable.of(uploads, states[0])


def test_effects_are_the_minimum_that_gradient_descent_finds():
    means, counts = draw(3, 5, 4), COUNTS.double() / 10
    means = means * (counts > 0).unsqueeze(2)
    weights = counts.sqrt()
    classes, shifts = (torch.zeros(n, 4, dtype=torch.float64, requires_grad=True) for n in (5, 3))
    for _ in range(4000):
        misses = means - classes - shifts.unsqueeze(1)
        loss = (weights * misses.square().sum(2)).sum()
        loss = loss + RIDGE * weights.sum(1).mean() * shifts.square().sum()
        grads = torch.autograd.grad(loss, (classes, shifts))
        with torch.no_grad():
            for part, grad in zip((classes, shifts), grads):
                part -= 0.05 * grad
    centre = counts.sum(1) / counts.sum() @ shifts
    found = class_effects(means, counts)
    torch.testing.assert_close(found[:4], (classes + centre)[:4].detach(), rtol=1e-4, atol=1e-4)
    assert not found[4].any()


def test_clients_that_share_no_class_keep_their_means():
    counts = torch.tensor([[4.0, 2, 0], [0, 0, 7]], dtype=torch.float64)
    means = draw(2, 3, 4) * (counts > 0).unsqueeze(2)
    torch.testing.assert_close(class_effects(means, counts), means.sum(0))


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_rows_point_along_the_classes_whatever_clients_are_shifted_by(tmp_path, shift):
    classes, shifts, taken = clients(tmp_path, shift)
    found = merge(taken, ADDITIVE, unasked)
    plain = merge(taken, MergeConfig(), unasked)
    rows = found["head.weight"].double()
    centre = COUNTS.sum(1) / COUNTS.sum().double() @ shifts
    wanted = (classes + centre)[:4]

    def apart(rows):
        return float((1 - torch.cosine_similarity(rows[:4].double(), wanted)).mean())

    if shift:
        assert apart(rows) < 0.5 * apart(plain["head.weight"])
    else:
        assert apart(rows) < 1e-5
    assert not rows[4].any() and not found["head.bias"].any()
    assert torch.allclose(rows[:4].norm(dim=1), rows[0].norm().expand(4), rtol=1e-5)
    ratio = rows.norm(dim=1)[0] / plain["head.weight"].norm(dim=1).sum()
    assert 0.5 < ratio < 2
    others = plain.keys() - {"head.weight", "head.bias"}
    assert all(torch.equal(found[name], plain[name]) for name in others)


def test_another_head_is_left_out_of_it_with_a_warning(tmp_path, caplog):
    (tmp_path / "more").mkdir()
    _, _, taken = clients(tmp_path, 1.0)
    states = [upload.load_state() for upload in taken.uploads]
    sizes = [*COUNTS.sum(1).tolist(), 1000]
    more = Mergeable.of(sent(tmp_path / "more", [*states, drawn(7)], sizes), states[0])
    found, alone = (merge(each, ADDITIVE, unasked) for each in (more, taken))
    torch.testing.assert_close(found["head.weight"], alone["head.weight"])
    assert "those of client-3 are others" in caplog.text


def test_where_most_have_another_head_it_is_the_average_with_a_warning(tmp_path, caplog):
    uploads = sent(tmp_path, [drawn(seed) for seed in range(3)])
    taken = Mergeable.of(uploads, drawn(0))
    found, plain = (merge(taken, each, unasked) for each in (ADDITIVE, MergeConfig()))
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert "client-0, client-1, client-2 are others" in caplog.text
