"""Images that share a row of tokens never see each other."""

import pytest
import torch

from fedmitr_app.models.packing import Packing
from tests.helpers.tiny import random_images, tiny_vit


@pytest.mark.parametrize(("count", "length"), [(1, 5), (3, 5), (4, 5), (9, 5), (5, 9), (7, 2)])
def test_packing_and_unpacking_give_back_what_was_there(count, length):
    tokens = torch.randn(count, length, 3)
    packing = Packing.of(tokens)
    packed = packing.pack(tokens)
    assert packed.shape[1] == packing.images * length and packing.images <= max(1, count)
    assert torch.equal(packing.unpack(packed), tokens)
    if packing.images > 1:
        open_to = packing.mask == 0
        # Each token is open to its own image's tokens and to no other.
        assert open_to.sum(1).tolist() == [length] * packed.shape[1]
        assert open_to[:length, :length].all() and not open_to[:length, length:].any()


def test_long_rows_and_single_images_stay_alone():
    assert Packing.of(torch.randn(8, 17, 4)) == (1, 8, None)
    assert Packing.of(torch.randn(1, 5, 4)) == (1, 1, None)
    assert Packing.of(torch.randn(8, 5, 4, device="meta")) == (1, 8, None)


@pytest.mark.parametrize("wanted", [{}, {"patch_logits": True, "attention": True}])
@pytest.mark.parametrize(("batch", "kept"), [(6, 4), (5, 4), (3, 8), (7, 1)])
def test_a_packed_batch_gives_what_each_image_alone_gives(batch, kept, wanted):
    model, images = tiny_vit(), random_images(batch)
    keep_idx = torch.stack([torch.randperm(16)[:kept] for _ in range(batch)])
    images = images.requires_grad_()
    together = model(images, keep_idx, **wanted)
    (grad,) = torch.autograd.grad(together.logits.square().sum(), images)
    for number in range(batch):
        one = images[number : number + 1].detach().requires_grad_()
        alone = model(one, keep_idx[number : number + 1], **wanted)
        for name, value in alone._asdict().items():
            if value is not None:
                torch.testing.assert_close(getattr(together, name)[number : number + 1], value)
        (expected,) = torch.autograd.grad(alone.logits.square().sum(), one)
        torch.testing.assert_close(grad[number : number + 1], expected)
