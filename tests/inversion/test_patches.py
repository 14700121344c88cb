"""RollFlip of whole images and of patches, against loops over pixels."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fedmitr_app.inversion.patches import own_pixels, read_patches, write_patches
from fedmitr_app.inversion.views import (
    RollFlip,
    apply_roll_flip,
    draw_roll_flip,
    viewed_pixels,
)

SIZE, CHANNELS = 8, 2
OFFSETS = st.integers(-2 * SIZE, 2 * SIZE)
PATCHES = st.sampled_from([1, 2, 4, 8])


def views_of(*triples: tuple[int, int, bool]) -> RollFlip:
    down, right, flip = zip(*triples)
    return RollFlip(torch.tensor(down), torch.tensor(right), torch.tensor(flip))


def numbered(batch: int) -> torch.Tensor:
    """Images whose pixels are all different."""
    count = batch * CHANNELS * SIZE * SIZE
    return torch.arange(count, dtype=torch.float64).reshape(batch, CHANNELS, SIZE, SIZE)


def moved_by_hand(image: torch.Tensor, down: int, right: int, flip: bool) -> torch.Tensor:
    """Carry each pixel to its new place, one by one."""
    rolled, result = torch.empty_like(image), torch.empty_like(image)
    for row in range(SIZE):
        for col in range(SIZE):
            rolled[:, (row + down) % SIZE, (col + right) % SIZE] = image[:, row, col]
    for col in range(SIZE):
        result[:, :, SIZE - 1 - col if flip else col] = rolled[:, :, col]
    return result


def patchify(images: torch.Tensor, patch: int) -> torch.Tensor:
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def viewed(
    images: torch.Tensor, alive_idx: torch.Tensor, views: RollFlip, patch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    pixel_idx, positions = viewed_pixels(alive_idx, views, SIZE, patch)
    return read_patches(images, pixel_idx), positions


@given(OFFSETS, OFFSETS, st.booleans())
def test_apply_roll_flip_against_pixels_moved_by_hand(down, right, flip):
    images = numbered(2)
    viewed = apply_roll_flip(images, views_of((down, right, flip), (0, 0, False)))
    assert torch.equal(viewed[0], moved_by_hand(images[0], down, right, flip))
    assert torch.equal(viewed[1], images[1])


@given(PATCHES, OFFSETS, OFFSETS, st.booleans(), st.data())
def test_a_marker_patch_is_found_where_it_was_moved_to(patch, down, right, flip, data):
    """Whole-patch moves: the marker's new index is where a search over the image finds it."""
    grid = SIZE // patch
    down, right = down * patch, right * patch
    index = data.draw(st.integers(0, grid**2 - 1))
    row, col = patch * (index // grid), patch * (index % grid)
    image = torch.zeros(1, CHANNELS, SIZE, SIZE)
    image[0, :, row : row + patch, col : col + patch] = 1
    moved = moved_by_hand(image[0], down, right, flip)
    found = [i for i, p in enumerate(patchify(moved[None], patch)[0]) if p.min() == 1]
    patches, positions = viewed(
        image, torch.tensor([[index]]), views_of((down, right, flip)), patch
    )
    assert positions.tolist() == [found]
    assert patches.min() == 1


@given(
    PATCHES,
    st.lists(st.tuples(OFFSETS, OFFSETS, st.booleans()), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
)
def test_patches_of_a_view_are_those_of_the_whole_view(patch, triples, random):
    images, views, total = numbered(len(triples)), views_of(*triples), (SIZE // patch) ** 2
    alive = random.randint(1, total)
    alive_idx = torch.tensor([random.sample(range(total), alive) for _ in triples])
    patches, positions = viewed(images, alive_idx, views, patch)
    whole = patchify(apply_roll_flip(images, views), patch)
    for image in range(len(triples)):
        assert len(set(positions[image].tolist())) == alive
        assert torch.equal(patches[image], whole[image][positions[image]])


@given(st.sampled_from([2, 4]), OFFSETS, OFFSETS, st.booleans())
def test_a_patch_moves_to_the_nearest_place(patch, down, right, flip):
    """At least a quarter of a patch's own pixels are in its window."""
    own = torch.zeros(1, 1, SIZE, SIZE)
    own[..., :patch, :patch] = 1
    window, _ = viewed(own, torch.tensor([[0]]), views_of((down, right, flip)), patch)
    assert window.sum() >= patch**2 / 4


def test_a_gradient_goes_back_to_the_pixels_in_the_window_and_to_no_others():
    patch, alive_idx = 4, torch.tensor([[0, 3]])
    pixel_idx, positions = viewed_pixels(alive_idx, views_of((1, -5, True)), SIZE, patch)
    upstream = torch.rand(read_patches(numbered(1), pixel_idx).shape, dtype=torch.float64)
    grad = torch.zeros_like(numbered(1))
    write_patches(grad, upstream, pixel_idx)
    # The oracle: where did the pixels of the viewed patches come from?
    expected = torch.zeros_like(grad)
    source = moved_by_hand(numbered(1)[0], 1, -5, True)
    shown = patchify(source[None], patch)[0][positions[0]]
    for values, gradients in zip(shown.flatten().long(), upstream.flatten()):
        expected.flatten()[values] += gradients
    torch.testing.assert_close(grad, expected)
    assert (grad != 0).sum() == upstream.numel()


@given(PATCHES, st.randoms(use_true_random=False))
def test_what_is_written_is_what_is_read(patch, random):
    total = (SIZE // patch) ** 2
    chosen = torch.tensor([random.sample(range(total), (total + 1) // 2) for _ in range(2)])
    images, pixel_idx = numbered(2), own_pixels(chosen, SIZE, patch)
    pixels = read_patches(images, pixel_idx)
    for image in range(2):
        assert torch.equal(pixels[image], patchify(images, patch)[image][chosen[image]])
    expected = patchify(images, patch).clone()
    for image in range(2):
        expected[image, chosen[image]] = -pixels[image]
    write_patches(images, -pixels, pixel_idx)
    assert torch.equal(patchify(images, patch), expected)


def test_views_stay_within_reach_and_use_it_all():
    views = draw_roll_flip(2000, 16, 0.25, 0.5, torch.Generator().manual_seed(0))
    for offsets in (views.down, views.right):
        assert sorted(offsets.unique().tolist()) == list(range(-4, 5))
    assert views.flip.float().mean().item() == pytest.approx(0.5, abs=0.05)
    # Per image, not per batch.
    assert len(set(zip(*(part.tolist() for part in views)))) > 100


def test_no_roll_and_no_flip_leave_images_alone():
    views = draw_roll_flip(3, SIZE, 0.0, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(apply_roll_flip(numbered(3), views), numbered(3))
    assert not views.flip.any()


def test_certain_flips():
    assert draw_roll_flip(50, SIZE, 0.0, 1.0, torch.Generator()).flip.all()


def test_writing_where_it_would_be_lost_is_refused():
    images, own = numbered(1).transpose(2, 3), own_pixels(torch.tensor([[0]]), SIZE, 4)
    with pytest.raises(RuntimeError, match="view"):
        write_patches(images, torch.zeros(1, 1, CHANNELS * 16, dtype=images.dtype), own)
