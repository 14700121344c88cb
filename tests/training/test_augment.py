"""Shifts and flips against a slow oracle, image by image."""

import pytest
import torch

from fedmitr_app.training import augment


def images(count: int = 64, side: int = 16) -> torch.Tensor:
    draws = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, side, side), generator=draws, dtype=torch.uint8)


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    side = image.shape[-1]
    result = torch.empty_like(image)
    for row in range(side):
        for column in range(side):
            source_row = min(max(row + down, 0), side - 1)
            source_column = min(max(column + right, 0), side - 1)
            result[:, row, column] = image[:, source_row, source_column]
    return result


@pytest.mark.parametrize("kind", ["shift", "shift-flip"])
def test_each_image_is_one_of_its_own_shifts(kind):
    batch = images(8)
    out = augment(batch, kind, torch.Generator().manual_seed(0))
    assert out.shape == batch.shape and out.dtype == torch.uint8
    found = set()
    for before, after in zip(batch, out, strict=True):
        options = {
            (down, right, flip): shifted(before, down, right).flip(2 if flip else ())
            for down in range(-2, 3)
            for right in range(-2, 3)
            for flip in (False, True)[: 1 + (kind == "shift-flip")]
        }
        matches = [how for how, option in options.items() if torch.equal(option, after)]
        assert len(matches) == 1
        found.add(matches[0])
    assert len(found) > 4, "images must not share their draws"
    assert {flip for _, _, flip in found} == ({False, True} if kind == "shift-flip" else {False})


def test_none_changes_nothing():
    batch = images()
    assert augment(batch, "none", torch.Generator()) is batch


def test_the_generator_decides():
    batch = images()
    one, same, other = (
        augment(batch, "shift-flip", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("side", [4, 7])
def test_images_too_small_to_shift_stay(side):
    batch = images(side=side)
    assert torch.equal(augment(batch, "shift", torch.Generator().manual_seed(0)), batch)


def test_float_images_and_single_channels():
    batch = images()[:, :1].float()
    assert augment(batch, "shift", torch.Generator().manual_seed(0)).dtype == torch.float32


def test_affine_views_are_turned_images_of_their_own():
    # A bright half: however it is turned a little, it stays bright on its side.
    images = torch.zeros(32, 1, 16, 16, dtype=torch.uint8)
    images[..., 8:] = 200
    seen = augment(images, "affine", torch.Generator().manual_seed(0))
    assert seen.shape == images.shape and seen.dtype == torch.uint8
    assert (seen[:, 0, 8, 13:] == 200).all() and (seen[:, 0, 8, :3] == 0).all()
    assert len({tuple(view.flatten().tolist()) for view in seen}) == 32
    again = augment(images, "affine", torch.Generator().manual_seed(0))
    assert torch.equal(seen, again)


def test_affine_views_are_larger_and_smaller_by_up_to_the_share_that_is_said():
    """The area of a bright disc, which turns and slides leave as it is."""
    axis = torch.arange(64) - 31.5
    disc = (axis[:, None].square() + axis.square() < 12**2).float().expand(400, 1, 64, 64)
    seen = augment(disc, "affine", torch.Generator().manual_seed(0))
    sides = (seen.flatten(1).sum(1) / disc[0].sum()).sqrt()
    assert 1 / 1.15 - 0.01 < sides.min() < 0.89 and 1.15 < sides.max() < 1 / 0.85 + 0.01


def test_affine_edges_repeat_and_bring_in_no_black():
    images = torch.full((8, 3, 12, 12), 90, dtype=torch.uint8)
    assert (augment(images, "affine", torch.Generator().manual_seed(1)) == 90).all()
