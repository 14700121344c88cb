"""Batches from the pool: views of image and mask together, and mixup of two parts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmitr_app.distillation.batches import Batch, draw_batch, draw_recipe, view_mask
from fedmitr_app.inversion.geometry import Views, apply_view
from fedmitr_app.inversion.pool import PoolData
from tests.inversion.tiny import distillation_config, random_images, random_targets

PATCH, GRID = 4, 4


def pool_of(count: int = 5) -> PoolData:
    rng = torch.Generator().manual_seed(3)
    mask = torch.rand(count, GRID**2, generator=rng) < 0.4
    return PoolData(
        random_images(count, dtype=torch.float32),
        random_targets(count, dtype=torch.float32),
        mask,
    )


def draw(pool: PoolData, seed: int = 0, **changes) -> Batch:
    return draw_batch(pool, distillation_config(**changes), torch.Generator().manual_seed(seed))


def pixels_of(mask: torch.Tensor) -> torch.Tensor:
    """Paint each patch of a mask ``[B, N]`` over its pixels: ``[B, 1, H, W]``."""
    grid = mask.reshape(-1, 1, GRID, GRID).double()
    return grid.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)


OFFSETS = st.integers(-20, 20)


@given(OFFSETS, OFFSETS, st.booleans(), st.integers(0, 2**16 - 1))
def test_a_mask_goes_with_its_image_to_the_nearest_patch(down, right, flip, bits):
    """Painted and moved pixel by pixel, a kept patch covers a quarter of its new place or more."""
    mask = torch.tensor([[bool(bits >> patch & 1) for patch in range(GRID**2)]])
    views = Views(torch.tensor([down]), torch.tensor([right]), torch.tensor([flip]))
    moved = view_mask(mask, views, GRID * PATCH)
    assert moved.sum() == mask.sum() and moved.dtype == torch.bool
    painted = apply_view(pixels_of(mask), views)
    covered = torch.nn.functional.avg_pool2d(painted, PATCH).flatten(1)
    assert (covered[moved] >= 0.25).all()
    if down % PATCH == 0 and right % PATCH == 0:
        assert torch.equal(covered == 1, moved)


def test_without_mixup_a_batch_is_views_of_the_pool():
    pool = pool_of()
    batch = draw(pool, mixup=0.0, roll=0.0, flip=0.0)
    [(share, mask, targets)] = batch.parts
    assert torch.equal(share, torch.ones(8))
    for image, kept, target in zip(batch.images, mask, targets):
        [found] = [i for i in range(5) if torch.equal(pool.images[i], image)]
        assert torch.equal(kept, pool.mask[found]) and torch.equal(target, pool.targets[found])
    assert torch.equal(batch.targets, targets) and torch.equal(batch.background, ~mask)


@pytest.mark.parametrize("mixup", [0.0, 0.7])
def test_a_recipe_makes_the_same_batch_every_time(mixup):
    pool, rng = pool_of(), torch.Generator().manual_seed(5)
    config = distillation_config(mixup=mixup, roll=0.4, flip=0.5)
    recipe, other = draw_recipe(pool, config, rng), draw_recipe(pool, config, rng)
    once, again = recipe.make(pool), recipe.make(pool)
    assert torch.equal(once.images, again.images) and torch.equal(once.targets, again.targets)
    assert torch.equal(once.token_targets, again.token_targets)
    assert not torch.equal(once.images, other.make(pool).images)


def test_views_are_drawn_per_image():
    pool = pool_of(1)
    images = draw(pool, mixup=0.0, roll=0.5, flip=0.5, batch_size=32).images
    assert len({image.numpy().tobytes() for image in images}) > 16
    assert all(torch.equal(i.sort().values, images[0].flatten().sort().values)
               for i in images.flatten(1))


@pytest.mark.parametrize("mixup", [0.3, 1.0, 5.0])
def test_mixup_is_linear_in_its_parts(mixup):
    pool = pool_of()
    batch = draw(pool, mixup=mixup, roll=0.0, flip=0.0, batch_size=20)
    (share, mask, targets), (rest, other_mask, other_targets) = batch.parts
    torch.testing.assert_close(share + rest, torch.ones(20))
    assert share.min() >= 0 and share.max() <= 1 and len(share.unique()) > 10
    for row in range(20):
        [first] = [i for i in range(5) if torch.equal(pool.targets[i], targets[row])]
        [second] = [i for i in range(5) if torch.equal(pool.targets[i], other_targets[row])]
        blend = share[row] * pool.images[first] + rest[row] * pool.images[second]
        torch.testing.assert_close(batch.images[row], blend)
        label = share[row] * pool.targets[first] + rest[row] * pool.targets[second]
        torch.testing.assert_close(batch.targets[row], label)
        assert torch.equal(mask[row], pool.mask[first])
        assert torch.equal(batch.background[row], ~(pool.mask[first] | pool.mask[second]))
    assert torch.equal(other_mask | mask, ~batch.background)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(alpha):
    shares = draw(pool_of(), mixup=alpha, batch_size=4000).parts[0][0]
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_the_generator_alone_decides():
    torch.manual_seed(1)
    one = draw(pool_of(), mixup=0.3)
    torch.manual_seed(2)
    assert torch.equal(one.images, draw(pool_of(), mixup=0.3).images)
    assert not torch.equal(one.images, draw(pool_of(), seed=1, mixup=0.3).images)
