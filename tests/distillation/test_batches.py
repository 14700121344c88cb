"""Batches from the pool: views of image and mask together."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmitr_app.distillation.batches import Batch, draw_batch, draw_recipe, view_mask
from fedmitr_app.inversion.pool import PoolData
from fedmitr_app.inversion.views import RollFlip, apply_roll_flip
from tests.helpers.tiny import distillation_config, random_images, random_targets

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
    views = RollFlip(torch.tensor([down]), torch.tensor([right]), torch.tensor([flip]))
    moved = view_mask(mask, views, GRID * PATCH)
    assert moved.sum() == mask.sum() and moved.dtype == torch.bool
    painted = apply_roll_flip(pixels_of(mask), views)
    covered = torch.nn.functional.avg_pool2d(painted, PATCH).flatten(1)
    assert (covered[moved] >= 0.25).all()
    if down % PATCH == 0 and right % PATCH == 0:
        assert torch.equal(covered == 1, moved)


def test_a_batch_is_views_of_the_pool():
    pool = pool_of()
    batch = draw(pool, roll=0.0, flip=0.0)
    for image, kept, target in zip(*batch, strict=True):
        [found] = [i for i in range(5) if torch.equal(pool.images[i], image)]
        assert torch.equal(kept, pool.mask[found]) and torch.equal(target, pool.targets[found])
    assert len({image.numpy().tobytes() for image in batch.images}) > 2


def test_a_recipe_makes_the_same_batch_every_time():
    pool, rng = pool_of(), torch.Generator().manual_seed(5)
    config = distillation_config(roll=0.4, flip=0.5)
    recipe, other = draw_recipe(pool, config, rng), draw_recipe(pool, config, rng)
    once, again = recipe.make(pool), recipe.make(pool)
    assert all(torch.equal(one, same) for one, same in zip(once, again, strict=True))
    assert not torch.equal(once.images, other.make(pool).images)


def test_views_are_drawn_per_image():
    pool = pool_of(1)
    images = draw(pool, roll=0.5, flip=0.5, batch_size=32).images
    assert len({image.numpy().tobytes() for image in images}) > 16
    assert all(
        torch.equal(i.sort().values, images[0].flatten().sort().values) for i in images.flatten(1)
    )


def test_the_generator_alone_decides():
    torch.manual_seed(1)
    one = draw(pool_of())
    torch.manual_seed(2)
    assert torch.equal(one.images, draw(pool_of()).images)
    assert not torch.equal(one.images, draw(pool_of(), seed=1).images)
