"""Views of images under inversion: rolled, mirrored, zoomed, in changed colours.

Convolutional networks hold an inversion to natural images by their BatchNorm statistics. A ViT
has none: there augmentations do it, random zoom and colour among them (Plug-In Inversion, Ghiasi
et al., ICML 2022). Each is drawn per image and step, and none costs anything where it is 0.

A roll is by whole pixels, a mirror may follow. On a whole image that is :func:`apply_roll_flip`.
On a subset of patches :func:`viewed_pixels` splits each offset into whole patches, which only
move the position index, and a rest of at most half a patch, by which the patch's window is
shifted: it reads some pixels of its neighbours, frozen ones included. What is read there are
exactly the patches of the whole view. Indices of pixels instead of pixels: the way back, of a
gradient, is then a plain write.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fedmitr_app.config import InversionConfig
from fedmitr_app.inversion.patches import (
    flat_pixels,
    gather_pixels,
    own_pixels,
    read_patches,
    write_patches,
)
from fedmitr_app.models import InputSpec

TIES = 1e-3
"""Of a patch: what chance may add to its alive share, to choose between equal ones."""


class RollFlip(NamedTuple):
    """One roll and flip per image, each ``[B]``."""

    down: Tensor
    """Rows by which the image rolls down, in pixels."""
    right: Tensor
    """Columns by which it rolls to the right, in pixels."""
    flip: Tensor
    """Whether it is mirrored left to right after the roll."""

    def to(self, device: torch.device) -> "RollFlip":
        """Move to a device, which is not waited for."""
        return RollFlip(*(part.to(device, non_blocking=True) for part in self))


def draw_roll_flip(
    batch: int, size: int, roll: float, flip: float, generator: torch.Generator
) -> RollFlip:
    """Draw on the CPU: rolls up to ``±roll * size`` pixels, mirrored with chance ``flip``."""
    reach = int(roll * size)
    offsets = torch.randint(-reach, reach + 1, (2, batch), generator=generator)
    return RollFlip(offsets[0], offsets[1], torch.rand(batch, generator=generator) < flip)


def apply_roll_flip(images: Tensor, roll_flip: RollFlip) -> Tensor:
    """Roll and flip whole images ``[B, C, H, W]``."""
    size = images.shape[-1]
    axis = torch.arange(size, device=images.device)
    rows = (axis - roll_flip.down.unsqueeze(1)) % size
    cols = torch.where(roll_flip.flip.unsqueeze(1), size - 1 - axis, axis)
    cols = (cols - roll_flip.right.unsqueeze(1)) % size
    return gather_pixels(images, rows.unsqueeze(2) * size + cols.unsqueeze(1))


def viewed_pixels(
    alive_idx: Tensor, roll_flip: RollFlip, size: int, patch_size: int
) -> tuple[Tensor, Tensor]:
    """Return where the patches of the viewed images that show the alive ones get their pixels.

    The windows of one image never overlap: all are shifted alike.

    Parameters
    ----------
    alive_idx : Tensor
        Indices of alive patches in the images themselves, ``[B, n]``.
    roll_flip : RollFlip
        One per image.
    size, patch_size : int
        Sides of an image and of a patch, in pixels.

    Returns
    -------
    pixel_idx : Tensor
        Flat indices into an image's pixels, ``[B, n, p*p]``, in the order of ``alive_idx``.
    position_idx : Tensor
        Where each patch stands in the viewed image, ``[B, n]``.
    """
    grid = size // patch_size
    row, col = alive_idx // grid, alive_idx % grid
    move_down, rest_down = _split(roll_flip.down, patch_size)
    move_right, rest_right = _split(roll_flip.right, patch_size)
    flip = roll_flip.flip.unsqueeze(1)

    inside = torch.arange(patch_size, device=alive_idx.device)
    # [B, n, p]: source rows and columns of each window, wrapping around the image.
    rows = (row.unsqueeze(2) * patch_size + inside - rest_down.reshape(-1, 1, 1)) % size
    across = torch.where(flip.unsqueeze(2), patch_size - 1 - inside, inside)
    cols = (col.unsqueeze(2) * patch_size + across - rest_right.reshape(-1, 1, 1)) % size

    new_row = (row + move_down.unsqueeze(1)) % grid
    new_col = (col + move_right.unsqueeze(1)) % grid
    new_col = torch.where(flip, grid - 1 - new_col, new_col)
    return flat_pixels(rows, cols, size), new_row * grid + new_col


class Zoom(NamedTuple):
    """How many times larger each image is shown, ``[B]`` all, and about which point."""

    scale: Tensor
    row: Tensor
    """In image heights from the top; this point stays where it is."""
    col: Tensor
    """In image widths from the left."""
    ties: Tensor
    """Random numbers in [0, 1), one for each patch of the view, ``[B, N]``."""

    @classmethod
    def draw(cls, batch: int, patches: int, reach: float, generator: torch.Generator) -> "Zoom":
        """Draw on the CPU: up to ``1 + reach`` times larger or smaller, about any point."""
        power = 2 * torch.rand(batch, generator=generator) - 1
        row, col = torch.rand(2, batch, generator=generator)
        ties = torch.rand(batch, patches, generator=generator)
        return cls((1 + reach) ** power, row, col, ties)


class Colour(NamedTuple):
    """A factor and a shift of each channel's values, ``[B, C]`` both."""

    contrast: Tensor
    shift: Tensor

    @classmethod
    def draw(cls, batch: int, channels: int, reach: float, generator: torch.Generator) -> "Colour":
        """Draw on the CPU: up to ``exp(±reach)`` times, moved by ``±reach`` (model input)."""
        drawn = reach * (2 * torch.rand(2, batch, channels, generator=generator) - 1)
        return cls(drawn[0].exp(), drawn[1])


class View(NamedTuple):
    """One view of every image of a batch: rolled, perhaps zoomed, mirrored, perhaps coloured."""

    roll_flip: RollFlip
    zoom: Zoom | None = None
    colour: Colour | None = None

    def to(self, device: torch.device) -> "View":
        """Move to a device, which is not waited for."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        return View(
            self.roll_flip.to(device),
            self.zoom and Zoom(*map(moved, self.zoom)),
            self.colour and Colour(*map(moved, self.colour)),
        )


def draw_view(
    batch: int, spec: InputSpec, patches: int, config: InversionConfig, generator: torch.Generator
) -> View:
    """Draw a view of images of ``patches`` patches on the CPU."""
    roll_flip = draw_roll_flip(batch, spec.size, config.roll, config.flip, generator)
    zoom = colour = None
    if config.zoom:
        zoom = Zoom.draw(batch, patches, config.zoom, generator)
    if config.colour:
        colour = Colour.draw(batch, spec.channels, config.colour, generator)
    return View(roll_flip, zoom, colour)


class ViewedPatches(Protocol):
    """The patches of a view that show the alive ones, and the way back of their gradient."""

    positions: Tensor
    """Where they stand in the view, ``[B, n]``."""

    def read(self, images: Tensor) -> Tensor:
        """Return their pixels from images ``[B, C, H, W]``: ``[B, n, C*p*p]``."""

    def pull_back(self, grad: Tensor, images: Tensor) -> Tensor:
        """Return the gradient by the images, shaped as they, of one by what was read."""


def view_patches(
    view: View, alive: Tensor, spec: InputSpec, patch_size: int, zoomed: bool
) -> ViewedPatches:
    """Return what a view shows of the alive patches ``[B, n]``.

    ``zoomed``: False leaves out the zoom, so that the n patches are shown in their own order.
    """
    if view.zoom is not None and zoomed:
        found: ViewedPatches = _Zoomed(view.roll_flip, view.zoom, alive, spec.size, patch_size)
    else:
        found = _Rolled(view.roll_flip, alive, spec.size, patch_size)
    return found if view.colour is None else _Coloured(found, view.colour, patch_size)


def zoom_matrices(roll_flip: RollFlip, zoom: Zoom, size: int) -> tuple[Tensor, Tensor]:
    """Return R, C ``[B, size, size]`` so that the view of an image X is ``R X C^T``.

    The image is rolled, zoomed by bilinear reads, then mirrored; what lies beyond a border is the
    other side, as in a roll. Matrices, because their way back is a product too: the same sums in
    the same order each time, which scattered additions on a GPU are not.
    """
    axis = torch.arange(size, device=zoom.scale.device)
    across = torch.where(roll_flip.flip.unsqueeze(1), size - 1 - axis, axis)
    rows = _reads(axis.expand(len(zoom.scale), -1), roll_flip.down, zoom.row * size, zoom.scale)
    return rows, _reads(across, roll_flip.right, zoom.col * size, zoom.scale)


def _reads(place: Tensor, moved: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Return what each pixel of an axis ``place`` ``[B, size]`` reads from the image's axis."""
    size = place.shape[1]
    centre, scale = centre.unsqueeze(1), scale.unsqueeze(1)
    source = centre + (place + 0.5 - centre) / scale - 0.5 - moved.unsqueeze(1)
    below = source.floor()
    part = (source - below).unsqueeze(2)
    first = below.long().remainder(size).unsqueeze(2)
    axis = torch.arange(size, device=place.device)
    return (axis == first) * (1 - part) + (axis == (first + 1) % size) * part


class _Rolled:
    """By whole pixels: each alive patch in its own window, in their order."""

    def __init__(self, roll_flip: RollFlip, alive: Tensor, size: int, patch_size: int) -> None:
        self._pixels, self.positions = viewed_pixels(alive, roll_flip, size, patch_size)

    def read(self, images: Tensor) -> Tensor:
        return read_patches(images, self._pixels)

    def pull_back(self, grad: Tensor, images: Tensor) -> Tensor:
        back = torch.zeros_like(images)
        write_patches(back, grad, self._pixels)
        return back


class _Zoomed:
    """As many patches of the zoomed view as are alive: those that show most of what is.

    What they show is the zoomed image itself, stopped neighbours included; when all patches are
    alive it is all of it. Enlarged, the alive ones fill more patches than are taken: chance
    decides between those that they fill alike.
    """

    def __init__(
        self, roll_flip: RollFlip, zoom: Zoom, alive: Tensor, size: int, patch_size: int
    ) -> None:
        self._size, self._patch = size, patch_size
        self._rows, self._cols = zoom_matrices(roll_flip, zoom, size)
        grid = size // patch_size
        mask = torch.zeros(len(alive), grid * grid, device=alive.device)
        mask = mask.scatter_(1, alive, 1.0).unflatten(1, (grid, grid))
        # Of each patch of the view, the mean over its pixels of what they read from alive ones.
        rows, cols = (
            axis.unflatten(2, (grid, -1)).sum(3).unflatten(1, (grid, -1)).mean(2)
            for axis in (self._rows, self._cols)
        )
        moves = (rows @ mask.to(rows) @ cols.transpose(1, 2)).flatten(1)
        best = (moves + TIES * zoom.ties).topk(alive.shape[1], dim=1).indices
        self.positions = best.sort(dim=1).values

    def read(self, images: Tensor) -> Tensor:
        rows, cols = (axis.to(images.dtype).unsqueeze(1) for axis in (self._rows, self._cols))
        view = rows @ images @ cols.transpose(2, 3)
        return read_patches(view, own_pixels(self.positions, self._size, self._patch))

    def pull_back(self, grad: Tensor, images: Tensor) -> Tensor:
        rows, cols = (axis.to(images.dtype).unsqueeze(1) for axis in (self._rows, self._cols))
        whole = torch.zeros_like(images)
        write_patches(whole, grad, own_pixels(self.positions, self._size, self._patch))
        return rows.transpose(2, 3) @ whole @ cols


class _Coloured:
    """What another shows, each channel times a factor and shifted; not clipped."""

    def __init__(self, plain: ViewedPatches, colour: Colour, patch_size: int) -> None:
        self._plain, self.positions = plain, plain.positions
        self._contrast, self._shift = (
            part.repeat_interleave(patch_size**2, dim=1).unsqueeze(1) for part in colour
        )

    def read(self, images: Tensor) -> Tensor:
        read = self._plain.read(images)
        return read * self._contrast.to(read) + self._shift.to(read)

    def pull_back(self, grad: Tensor, images: Tensor) -> Tensor:
        return self._plain.pull_back(grad * self._contrast.to(grad), images)


def _split(offset: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Split pixel offsets into whole patches and a rest within half a patch."""
    whole = torch.div(offset + patch_size // 2, patch_size, rounding_mode="floor")
    return whole, offset - whole * patch_size
