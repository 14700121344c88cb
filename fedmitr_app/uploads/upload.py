"""One client's upload, as the server keeps it: facts in memory, weights on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import Tensor

from fedmitr_app.models.spec import InputSpec
from fedmitr_app.uploads.moments import ClassMoments

ALIGNMENT = 64
"""Bytes; where torch puts its own tensors. Products of few rows round otherwise elsewhere."""


@dataclass(frozen=True)
class Upload:
    """A validated upload.

    Parameters
    ----------
    client : str
        The client's stable key: uploads are sorted by it before anything seeded,
        so that the order of arrival changes nothing.
    num_examples : int | None
        How many samples the client trained on, as it says; positive. None if it says what
        can't be.
    weights : Path
        A safetensors file with the state dict, read only when asked for.
    architecture : Mapping[str, Any] | None
        What the client says its model is; None if it says nothing.
    input_spec : InputSpec | None
        What the client feeds its model; None if it says nothing.
    metrics : Mapping[str, float]
        Finite numbers from the client's training.
    label_counts : tuple[int, ...] | None
        Samples per class, only if the client chose to share them.
    digest : str
        SHA-256 of the arrays themselves (names, types, shapes, values), in hex.
    moments : str
        The same of the class moments, only if the client chose to share them; else empty.
    node : int
        Flower's id of the node that sent it; 0 if it came otherwise.
    """

    client: str
    num_examples: int | None
    weights: Path
    architecture: Mapping[str, Any] | None = None
    input_spec: InputSpec | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    label_counts: tuple[int, ...] | None = None
    digest: str = ""
    moments: str = ""
    node: int = 0

    def load_state(self) -> dict[str, Tensor]:
        """Map the weights: a state dict on the CPU, read from disk where it is used.

        Those that don't lie as torch's own tensors do are copied, so that answers are the same
        to the last bit as those of a copy, in another process say.
        """
        state = load_file(self.weights)
        return {
            name: value.clone() if value.data_ptr() % ALIGNMENT else value
            for name, value in state.items()
        }

    def load_moments(self) -> ClassMoments:
        """Read the class moments, which only some uploads have."""
        return ClassMoments(**load_numpy(moments_file(self.weights)))


def save_state(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a safetensors file whose tensors begin on a multiple of ``ALIGNMENT`` bytes.

    The blocks' stand first in it, and their sizes are multiples as a rule: most can be mapped.
    """
    save_file(dict(arrays), path, metadata={"filling": ""})
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")  # of the header, whose end is on 8 bytes
    if missing := -(8 + length) % ALIGNMENT:
        save_file(dict(arrays), path, metadata={"filling": " " * missing})


def moments_file(weights: Path) -> Path:
    """Return where the class moments that came with these weights are."""
    return weights.with_suffix(".moments.safetensors")
