"""Slope and curvature against what is slow and certain."""

import pytest
import torch
from torch.func import functional_call

from fedmitr_app.diagnostics.curvature import (
    input_gradients,
    largest_of_parts,
    student_curvature,
    top_eigenvalue,
)
from fedmitr_app.inversion.losses import cross_entropy
from fedmitr_app.utils.randomness import generator
from tests.helpers.tiny import random_images, random_targets, tiny_vit


def full_hessian(parameters, loss):
    """Row by row, by two plain derivatives."""
    grads = torch.autograd.grad(loss, parameters, create_graph=True)
    slope = torch.cat([grad.flatten() for grad in grads])
    rows = [torch.autograd.grad(part, parameters, retain_graph=True) for part in slope]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("seed", range(3))
def test_the_top_eigenvalue_of_a_small_network(seed):
    rng = generator(seed, "test")
    weights = [
        torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()
        for shape in ((6, 5), (5,), (5, 3))
    ]
    images = torch.randn(7, 6, generator=rng, dtype=torch.float64)
    targets = torch.randn(7, 3, generator=rng, dtype=torch.float64).softmax(-1)

    def loss():
        hidden = (images @ weights[0] + weights[1]).tanh()
        return cross_entropy(hidden @ weights[2], targets).mean()

    exact = torch.linalg.eigvalsh(full_hessian(weights, loss()))
    expected = exact[exact.abs().argmax()]
    found, _ = top_eigenvalue(loss, weights, rng, tolerance=1e-10, most_iterations=5000)
    assert found.converged
    assert found.value == pytest.approx(float(expected), rel=1e-4)


def test_a_negative_eigenvalue_that_is_largest_keeps_its_sign():
    point = torch.ones(3, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.0, -4.0, 2.0], dtype=torch.float64)
    found, _ = top_eigenvalue(
        lambda: (scale * point.square()).sum() / 2, [point], generator(0), tolerance=1e-9
    )
    assert found.value == pytest.approx(-4.0, rel=1e-6)


def test_the_limit_ends_the_iteration_and_is_told():
    point = torch.ones(2, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.0, 0.99], dtype=torch.float64)

    def loss():
        return (scale * point.square()).sum() / 2

    found, _ = top_eigenvalue(loss, [point], generator(0), tolerance=1e-15, most_iterations=3)
    assert (found.iterations, found.converged) == (3, False)


def test_a_linear_loss_has_no_curvature():
    point = torch.ones(2, dtype=torch.float64, requires_grad=True)
    found, _ = top_eigenvalue(lambda: point.square().sum() * 0 + point.sum(), [point], generator(0))
    assert (found.value, found.converged) == (0.0, True)


def test_a_students_curvature_on_its_head_is_that_of_its_whole_hessian():
    """Of the head alone, whose Hessian is small enough to be formed."""
    model, images, targets = tiny_vit(), random_images(4), random_targets(4)
    head = {name: value for name, value in model.named_parameters() if "head" in name}

    def loss():
        return cross_entropy(functional_call(model, head, (images,)).logits, targets).mean()

    exact = torch.linalg.eigvalsh(full_hessian(list(head.values()), loss()))
    found, _ = top_eigenvalue(
        loss, list(head.values()), generator(0), tolerance=1e-10, most_iterations=3000
    )
    assert found.value == pytest.approx(float(exact.max()), rel=1e-5)
    # The whole Hessian's top is no less than that of a block on its diagonal.
    model.requires_grad_(False)
    whole = student_curvature(model, images, targets, generator(0), tolerance=1e-6)
    assert abs(whole.value) >= found.value * (1 - 1e-3)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("batch_size", [2, 256])
def test_the_largest_input_gradient_is_that_of_a_loop(batch_size):
    model, images, targets = tiny_vit(), random_images(5), random_targets(5)
    norms = []
    for image, target in zip(images, targets):
        image = image.clone().requires_grad_()
        loss = -(target * model(image.unsqueeze(0)).logits[0].log_softmax(-1)).sum()
        loss.backward()
        norms.append(image.grad.square().sum().sqrt().item())
    found = input_gradients(model, images, targets, batch_size=batch_size)
    assert found.tolist() == pytest.approx(norms, rel=1e-9)
    parts = largest_of_parts(found, generator(0))
    assert sorted(parts) == sorted(found.tolist())  # fewer images than parts
    many = torch.arange(100.0)
    assert max(largest_of_parts(many, generator(0))) == 99.0
    assert len(largest_of_parts(many, generator(0))) == 8


def test_what_a_part_of_the_images_adds_to_the_curvature():
    """Without a part: the mean of all is the whole, and none is above what it is solved anew."""
    model, images, targets = tiny_vit().requires_grad_(False), random_images(8), random_targets(8)
    whole = student_curvature(model, images, targets, generator(0), tolerance=1e-6)
    assert sum(whole.left_out) / 8 == pytest.approx(whole.value, rel=1e-4)
    for part in (0, 5):
        kept = [image for image in range(8) if image != part]
        rest = student_curvature(model, images[kept], targets[kept], generator(0))
        # The direction stays, where the rest's own would be steeper (Rayleigh).
        assert abs(whole.left_out[part]) <= abs(rest.value) * (1 + 1e-2)
    # Copies of the same images add the same, and leaving one out changes nothing.
    one = images[:1].expand(8, -1, -1, -1), targets[:1].expand(8, -1)
    same = student_curvature(model, *one, generator(0))
    assert same.left_out == pytest.approx([same.value] * 8, rel=1e-4)
