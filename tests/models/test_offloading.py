"""Models whose weights visit the device of their input."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fedmitr_app.inversion.objective import Objective
from fedmitr_app.models import OffloadedViT, StackedViT
from tests.helpers.tiny import (
    inversion_config,
    random_images,
    random_targets,
    tiny_teacher,
    tiny_vit,
)

META = torch.device("meta")


@pytest.mark.parametrize("wanted", [{}, {"attention": True}, {"patch_logits": True}], ids=str)
def test_it_answers_as_at_home_and_so_does_its_gradient(wanted):
    home = tiny_vit(0).eval().requires_grad_(False)
    images = random_images(3).requires_grad_()
    expected, found = home(images, **wanted), OffloadedViT(home)(images, **wanted)
    for one, other in zip(expected, found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    grads = [torch.autograd.grad(out.logits.sum(), images)[0] for out in (expected, found)]
    assert torch.equal(*grads)


def test_every_weight_goes_along_and_none_stays_there():
    """On a GPU that is only pretended: it refuses to work with what was left behind."""
    home = tiny_vit(0).eval().requires_grad_(False)
    visiting = OffloadedViT(home)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(3, *random_images(1).shape[1:], dtype=torch.float64, device="cuda")
        # Of a torch for GPUs whose driver is not there the error says that instead.
        with pytest.raises(RuntimeError, match="cuda.*cpu|cpu.*cuda|CUDA driver"):
            home(images)
        output = visiting(images, patch_logits=True, attention=True)
        assert all(part.device.type == "cuda" for part in output)
        assert output.logits.shape == (3, home.num_classes)
    assert all(value.device.type == "cpu" for value in visiting.state_dict().values())
    assert visiting.vit is home.vit  # no second copy


def test_an_ensemble_of_visitors_differentiates_one_after_the_other():
    """So that an ensemble holds one model's weights, whatever ``inversion.gradient`` says."""
    teacher = tiny_teacher()
    ran = []

    class Watched(OffloadedViT):
        def forward_patches(self, *arguments, **keywords):
            output = super().forward_patches(*arguments, **keywords)
            ran.append(id(self))
            return output

    visitors = replace(teacher, models=tuple(map(Watched, teacher.models)))
    config, targets = inversion_config(), random_targets(4)
    model = teacher.models[0]
    patches, places = model.patchify(random_images(4)), torch.arange(model.num_patches)
    places = places.expand(4, -1)
    joint = Objective(teacher, targets, config).gradient(patches, places)
    found = Objective(visitors, targets, config).gradient(patches, places)
    torch.testing.assert_close(found.grad, joint.grad)
    torch.testing.assert_close(found.loss, joint.loss)
    clients = len(teacher.models)
    # All without a graph, then each by itself: never two graphs at once.
    assert len(ran) == 2 * clients and ran[:clients] == ran[clients:]


def test_visitors_are_not_stacked_and_stay_where_they_are():
    teacher = tiny_teacher()
    visitors = replace(teacher, models=tuple(map(OffloadedViT, teacher.models)))
    assert visitors.offloaded and not teacher.offloaded
    assert visitors.stack is None and StackedViT.fits(teacher.models)
    moved = visitors.to(META)
    assert moved.class_weights.device == META
    assert all(one is other for one, other in zip(moved.models, visitors.models, strict=True))
