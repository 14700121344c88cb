"""Soft labels that are kept: half the numbers' width, none of their meaning."""

import torch

from fedmitr_app.distillation.losses import soft_label_loss
from fedmitr_app.distillation.soft_labels import SoftLabels


def test_compact_answers_teach_the_same():
    rng = torch.Generator().manual_seed(0)
    relabels = 8 * torch.randn(6, 16, 10, generator=rng)
    logits = torch.randn(6, 16, 10, generator=rng)
    labels = SoftLabels(torch.randn(6, 10, generator=rng), relabels)
    kept = labels.compact()
    assert kept.relabels.dtype == torch.half and torch.equal(kept.logits, labels.logits)
    exact = soft_label_loss(logits, relabels, 1.0)
    # A logit of at most 32 is rounded by at most 2^-7, its probability by at most 0.8 %.
    assert exact.min() > 0.1
    torch.testing.assert_close(
        soft_label_loss(logits, kept.relabels.float(), 1.0), exact, rtol=5e-3, atol=0
    )


def test_answers_beyond_half_precision_stay_finite():
    kept = SoftLabels(torch.zeros(1, 2), torch.tensor([[[1e6, -1e6]]])).compact()
    assert kept.relabels.isfinite().all() and kept.relabels[0, 0, 0] > kept.relabels[0, 0, 1]


def test_without_relabels_there_is_nothing_to_make_smaller():
    labels = SoftLabels(torch.zeros(2, 3), None)
    assert labels.compact() is labels
