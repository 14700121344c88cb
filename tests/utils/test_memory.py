"""Parts that a device's memory takes give what the whole gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmitr_app.models import PatchViT
from fedmitr_app.teacher import probe
from fedmitr_app.utils.memory import Halving
from tests.helpers.tiny import random_images, tiny_teacher


@given(count=st.integers(1, 70), most=st.integers(1, 80))
def test_every_row_is_done_once_in_parts_that_fit(count, most):
    def work(rows):
        if len(range(count)[rows]) > most:
            raise torch.OutOfMemoryError
        return list(range(count)[rows])

    halving = Halving("testing")
    parts = halving.over(count, work)
    assert sum(parts, []) == list(range(count))
    assert max(map(len, parts)) <= most
    assert halving.over(count, work) == parts


def test_a_row_that_does_not_fit_is_an_error():
    def work(rows):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        Halving("testing").over(3, work)


@pytest.mark.parametrize("tokens", [True, False])
def test_a_teacher_that_lacks_memory_answers_the_same(monkeypatch, tokens, caplog):
    teacher, images = tiny_teacher(), random_images(5)
    whole = teacher(images, patch_logits=tokens)
    probed = probe(teacher.models, images)
    honest = PatchViT.forward

    def limited(self, images, *rest, **options):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, images, *rest, **options)

    monkeypatch.setattr(PatchViT, "forward", limited)
    parts = teacher(images, patch_logits=tokens)
    torch.testing.assert_close(parts.logits, whole.logits)
    if tokens:
        torch.testing.assert_close(parts.patch_logits, whole.patch_logits)
    torch.testing.assert_close(probe(teacher.models, images), probed)
    assert "out of memory: asking the teacher 2 images at a time" in caplog.text
