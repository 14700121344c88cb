"""The pool of synthetic images on disk: safetensors shards, written as they are produced."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedmitr_app.files import write_atomically
from fedmitr_app.inversion.invert import Inverted


@dataclass(frozen=True)
class PoolData:
    """The pool in memory."""

    images: Tensor
    """Model input, float32 ``[n, C, H, W]``."""
    targets: Tensor
    """Class probabilities ``[n, classes]``."""
    mask: Tensor
    """Which patches survived, bool ``[n, N]``."""

    def __len__(self) -> int:
        return len(self.images)


class Pool:
    """A folder of shards ``pool-00000.safetensors``.

    Images are kept as float16 (choice: half the space of float32, and finer than the
    8-bit steps of a picture); what is distilled is what is stored.
    """

    def __init__(self, folder: Path, num_patches: int) -> None:
        self.folder = folder
        self.num_patches = num_patches
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, batch: Inverted, provenance: Mapping[str, Any]) -> Path:
        """Write one shard, whole or not at all.

        Parameters
        ----------
        batch : Inverted
            On any device.
        provenance : Mapping[str, Any]
            JSON-able facts of how it was made; stored in the file's header.

        Raises
        ------
        RunFolderError
            When the shard cannot be written.
        """
        path = self.folder / f"pool-{len(self.shards()):05d}.safetensors"
        tensors = {
            "images": batch.images.half().cpu().contiguous(),
            "targets": batch.targets.float().cpu().contiguous(),
            "keep_idx": batch.keep_idx.int().cpu().contiguous(),
        }
        facts = {"provenance": json.dumps(dict(provenance))}
        write_atomically(path, lambda partial: save_file(tensors, partial, metadata=facts))
        return path

    def shards(self) -> list[Path]:
        """Return the shards in the order they were written."""
        return sorted(self.folder.glob("pool-*.safetensors"))

    def provenance(self) -> list[dict[str, Any]]:
        """Return what :meth:`add` was told, shard by shard."""
        facts = []
        for path in self.shards():
            with safe_open(path, framework="pt") as file:
                facts.append(json.loads(file.metadata()["provenance"]))
        return facts

    def load(self, device: torch.device | str = "cpu") -> PoolData:
        """Read all shards."""
        images, targets, masks = [], [], []
        for path in self.shards():
            with safe_open(path, framework="pt", device=str(device)) as file:
                images.append(file.get_tensor("images").float())
                targets.append(file.get_tensor("targets"))
                keep_idx = file.get_tensor("keep_idx").long()
            mask = torch.zeros(len(keep_idx), self.num_patches, dtype=torch.bool, device=device)
            masks.append(mask.scatter_(1, keep_idx, True))
        return PoolData(torch.cat(images), torch.cat(targets), torch.cat(masks))
