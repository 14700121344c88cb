"""The pool of synthetic images on disk: safetensors shards, written as they are produced."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedmitr_app.errors import RunFolderError
from fedmitr_app.inversion.invert import Inverted
from fedmitr_app.utils.files import Stored, as_json, load_tensors, save_tensors

_log = logging.getLogger(__name__)

_KINDS = {
    "images": (torch.float16, 4),
    "targets": (torch.float32, 2),
    "keep_idx": (torch.int32, 2),
}
"""Each tensor's type and number of dimensions."""


@dataclass(frozen=True)
class PoolData:
    """The pool in memory."""

    images: Tensor
    """Model input, float32 ``[n, C, H, W]``."""
    targets: Tensor
    """Class probabilities ``[n, classes]``."""
    mask: Tensor
    """Which patches survived, bool ``[n, N]``."""
    digests: tuple[str, ...] = ()
    """Of the shards that it was read from."""

    def __len__(self) -> int:
        return len(self.images)

    def part(self, rows: slice) -> "PoolData":
        """Return some of the images, without a copy."""
        return replace(
            self, images=self.images[rows], targets=self.targets[rows], mask=self.mask[rows]
        )


class Place(NamedTuple):
    """A shard's place in the pool."""

    turn: int
    """Of a method that makes its images in turns; else 0."""
    batch: int = 0


class Pool:
    """A folder of shards ``pool-00000-00000.safetensors``: turn and batch.

    Images are kept as float16 (choice: half the space of float32, and finer than the
    8-bit steps of a picture); what is distilled is what is stored. Each shard holds what is
    known of how it was made, and its own digest, so that what a run left behind when it was
    stopped can be used again.
    """

    def __init__(self, folder: Path, num_patches: int) -> None:
        self.folder = folder
        self.num_patches = num_patches
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(
        self, batch: Inverted, provenance: Mapping[str, Any], place: Place, seconds: float = 0.0
    ) -> None:
        """Write one shard, whole or not at all; one that stands at its place is replaced.

        Parameters
        ----------
        batch : Inverted
            On any device.
        provenance : Mapping[str, Any]
            JSON-able facts of how it was made; stored in the file's header.
        place : Place
            Where it stands in the order of shards.
        seconds : float
            What it took.

        Raises
        ------
        RunFolderError
            When the shard cannot be written.
        """
        tensors = {
            "images": batch.images.half(),
            "targets": batch.targets.float(),
            "keep_idx": batch.keep_idx.int(),
        }
        facts = {"provenance": provenance, "curves": batch.curves, "seconds": seconds}
        # Like images that clients trained on, if all goes well.
        save_tensors(self._path(place), tensors, facts, private=True)

    def find(self, provenance: Mapping[str, Any], place: Place) -> tuple[Inverted, float] | None:
        """Return the shard at a place, without its images, and the seconds that it took.

        None if there is none, it is damaged, or it was made otherwise.
        """
        if not self._path(place).exists():
            return None
        try:
            found = self._read(self._path(place))
        except RunFolderError as error:
            _log.warning("%s It is made again.", error)
            return None
        if found.facts["provenance"] != as_json(provenance):
            return None
        kept = found.tensors["keep_idx"].long()
        # A clone: an empty slice would keep the whole shard in memory.
        empty = found.tensors["images"][:0].clone()
        # JSON has no NaN: a step without a loss has null.
        curves = {
            name: [math.nan if point is None else point for point in curve]
            for name, curve in found.facts["curves"].items()
        }
        return Inverted(empty, found.tensors["targets"], kept, curves), found.facts["seconds"]

    def clear(self) -> None:
        """Remove all shards."""
        for path in self.shards():
            path.unlink()

    def digests(self) -> list[str]:
        """Return each shard's digest; of a damaged one the empty string."""
        found = []
        for path in self.shards():
            try:
                found.append(self._read(path).digest)
            except RunFolderError:
                found.append("")
        return found

    def shards(self) -> list[Path]:
        """Return the shards in the order of their places."""
        return sorted(self.folder.glob("pool-*.safetensors"))

    def provenance(self) -> list[dict[str, Any]]:
        """Return what :meth:`add` was told, shard by shard."""
        return [self._read(path).facts["provenance"] for path in self.shards()]

    def load(self, device: torch.device | str = "cpu") -> PoolData:
        """Read all shards.

        Raises
        ------
        RunFolderError
            If one is not what was written.
        """
        images, targets, masks, digests = [], [], [], []
        for path in self.shards():
            shard = self._read(path, device)
            images.append(shard.tensors["images"].float())
            targets.append(shard.tensors["targets"])
            if _each(images[0], targets[0]) != _each(images[-1], targets[-1]):
                raise RunFolderError(f"{path} holds other images or classes than those before.")
            keep_idx = shard.tensors["keep_idx"].long()
            mask = torch.zeros(len(keep_idx), self.num_patches, dtype=torch.bool, device=device)
            masks.append(mask.scatter_(1, keep_idx, True))
            digests.append(shard.digest)
        return PoolData(torch.cat(images), torch.cat(targets), torch.cat(masks), tuple(digests))

    def _read(self, path: Path, device: torch.device | str = "cpu") -> Stored:
        """Read a shard, if it is what :meth:`add` writes."""
        found = load_tensors(path, device)
        if (why := _wrong_with(found, self.num_patches)) is not None:
            raise RunFolderError(f"{path} is no shard of a pool: {why}.")
        return found

    def _path(self, place: Place) -> Path:
        return self.folder / f"pool-{place.turn:05d}-{place.batch:05d}.safetensors"


def _each(images: Tensor, targets: Tensor) -> tuple[torch.Size, int]:
    return images.shape[1:], targets.shape[1]


def _wrong_with(shard: Stored, num_patches: int) -> str | None:
    """Say what no shard has; None for one that can be used. A digest only says that it is whole."""
    kinds = {name: (value.dtype, value.dim()) for name, value in shard.tensors.items()}
    if kinds != _KINDS:
        return "its tensors are others"
    images, targets, keep_idx = (shard.tensors[name] for name in _KINDS)
    if len({len(images), len(targets), len(keep_idx)}) > 1:
        return "its tensors are of different numbers of images"
    if not (images.isfinite().all() and targets.isfinite().all() and (targets >= 0).all()):
        return "it has values that are not finite, or targets below zero"
    if keep_idx.numel() and not (0 <= keep_idx.min() and keep_idx.max() < num_patches):
        return f"it keeps patches beyond {num_patches}"
    facts = shard.facts
    curves = facts.get("curves")
    numbers = [facts.get("seconds")]
    if not isinstance(facts.get("provenance"), dict) or not isinstance(curves, dict):
        return "what is said of it are no tables"
    for curve in curves.values():
        numbers += [point or 0.0 for point in curve] if isinstance(curve, list) else [None]
    if not all(isinstance(number, (int, float)) for number in numbers):
        return "its curves or seconds are no numbers"
    return None
