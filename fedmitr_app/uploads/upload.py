"""One client's upload, as the server keeps it: facts in memory, weights on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from torch import Tensor

from fedmitr_app.models.spec import InputSpec
from fedmitr_app.uploads.moments import ClassMoments


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
        """Map the weights: a state dict on the CPU, read from disk where it is used."""
        return load_file(self.weights)

    def load_moments(self) -> ClassMoments:
        """Read the class moments, which only some uploads have."""
        return ClassMoments(**load_numpy(moments_file(self.weights)))


def moments_file(weights: Path) -> Path:
    """Return where the class moments that came with these weights are."""
    return weights.with_suffix(".moments.safetensors")
