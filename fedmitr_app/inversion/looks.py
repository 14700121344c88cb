"""What one step of the inversion looks at: a view of each image, zoomed and in changed colours.

Convolutional networks hold an inversion to natural images by their BatchNorm statistics. A ViT
has none: there augmentations do it, random zoom and colour among them (Plug-In Inversion, Ghiasi
et al., ICML 2022). Both are drawn per image and step, and neither costs anything where it is 0.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fedmitr_app.config import InversionConfig
from fedmitr_app.inversion.geometry import (
    Views,
    draw_views,
    own_pixels,
    read_patches,
    viewed_pixels,
    write_patches,
)
from fedmitr_app.models import InputSpec

TIES = 1e-3
"""Of a patch: what chance may add to the share of it that moves, to choose between equal ones."""


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
    def draw(
        cls, batch: int, channels: int, reach: float, generator: torch.Generator
    ) -> "Colour":
        """Draw on the CPU: up to ``exp(±reach)`` times, moved by ``±reach`` (model input)."""
        drawn = reach * (2 * torch.rand(2, batch, channels, generator=generator) - 1)
        return cls(drawn[0].exp(), drawn[1])


class Look(NamedTuple):
    """One look at every image of a batch: rolled, perhaps zoomed, mirrored, perhaps coloured."""

    views: Views
    zoom: Zoom | None = None
    colour: Colour | None = None

    def to(self, device: torch.device) -> "Look":
        """Move to a device, which is not waited for."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def set(self, other: "Look") -> None:
        """Become another look at as many images, in place and without waiting."""
        for mine, new in zip(self, other, strict=True):
            for old, value in zip(mine or (), new or (), strict=True):
                old.copy_(value, non_blocking=True)

    def of(self, rows: Tensor) -> "Look":
        """Return the look at some images."""
        return self._each(lambda value: value[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Look":
        return Look(*(part and type(part)(*map(change, part)) for part in self))


def draw_look(
    batch: int, spec: InputSpec, patches: int, config: InversionConfig, generator: torch.Generator
) -> Look:
    """Draw a look at images of ``patches`` patches on the CPU."""
    views = draw_views(batch, spec.size, config.roll, config.flip, generator)
    zoom = colour = None
    if config.zoom:
        zoom = Zoom.draw(batch, patches, config.zoom, generator)
    if config.colour:
        colour = Colour.draw(batch, spec.channels, config.colour, generator)
    return Look(views, zoom, colour)


class Shown(Protocol):
    """The patches of a view that show the alive ones, and the way back of their gradient."""

    positions: Tensor
    """Where they stand in the view, ``[B, n]``."""

    def read(self, images: Tensor) -> Tensor:
        """Return their pixels from images ``[B, C, H, W]``: ``[B, n, C*p*p]``."""

    def pull_back(self, grad: Tensor, images: Tensor) -> Tensor:
        """Return the gradient by the images, shaped as they, of one by what was read."""


def shown(look: Look, alive: Tensor, spec: InputSpec, patch_size: int, zoomed: bool) -> Shown:
    """Return what a look shows of the alive patches ``[B, n]``.

    ``zoomed``: False leaves out the zoom, so that the n patches are shown in their own order.
    """
    if look.zoom is not None and zoomed:
        found: Shown = _Zoomed(look.views, look.zoom, alive, spec.size, patch_size)
    else:
        found = _Rolled(look.views, alive, spec.size, patch_size)
    return found if look.colour is None else _Coloured(found, look.colour, patch_size)


def zoom_matrices(views: Views, zoom: Zoom, size: int) -> tuple[Tensor, Tensor]:
    """Return R, C ``[B, size, size]`` so that the view of an image X is ``R X C^T``.

    The image is rolled, zoomed by bilinear reads, then mirrored; what lies beyond a border is the
    other side, as in a roll. Matrices, because their way back is a product too: the same sums in
    the same order each time, which scattered additions on a GPU are not.
    """
    axis = torch.arange(size, device=zoom.scale.device)
    across = torch.where(views.flip.unsqueeze(1), size - 1 - axis, axis)
    rows = _reads(axis.expand(len(zoom.scale), -1), views.down, zoom.row * size, zoom.scale)
    return rows, _reads(across, views.right, zoom.col * size, zoom.scale)


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

    def __init__(self, views: Views, alive: Tensor, size: int, patch_size: int) -> None:
        self._pixels, self.positions = viewed_pixels(alive, views, size, patch_size)

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
        self, views: Views, zoom: Zoom, alive: Tensor, size: int, patch_size: int
    ) -> None:
        self._size, self._patch = size, patch_size
        self._rows, self._cols = zoom_matrices(views, zoom, size)
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

    def __init__(self, plain: Shown, colour: Colour, patch_size: int) -> None:
        self._plain, self.positions = plain, plain.positions
        self._contrast, self._shift = (
            part.repeat_interleave(patch_size**2, dim=1).unsqueeze(1) for part in colour
        )

    def read(self, images: Tensor) -> Tensor:
        read = self._plain.read(images)
        return read * self._contrast.to(read) + self._shift.to(read)

    def pull_back(self, grad: Tensor, images: Tensor) -> Tensor:
        return self._plain.pull_back(grad * self._contrast.to(grad), images)
