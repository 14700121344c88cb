"""The uploads that a merge takes, read one array at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from fedmitr_app.uploads.array_statistics import is_fused, part_name
from fedmitr_app.uploads.class_means import HEAD
from fedmitr_app.uploads.example_weights import client_shares
from fedmitr_app.uploads.upload import Upload
from fedmitr_app.uploads.weight_checks import WeightCheck


class Array(NamedTuple):
    """One array of one upload."""

    client: int
    """The upload's place among those that are merged."""
    name: str
    value: Tensor
    """In float64, scaled back if the client had scaled it."""
    dtype: torch.dtype
    """As it came."""


@dataclass(frozen=True)
class Mergeable:
    """Uploads of one architecture, and what each counts for.

    Without those whose weights no merge may take; what was scaled is read scaled back.
    """

    uploads: tuple[Upload, ...]
    """Sorted ones make every merge reproducible."""
    shares: tuple[float, ...]
    """What each counts for in a mean; they sum to 1."""
    initial: Mapping[str, Tensor]
    """θ₀'s state dict, on the CPU."""
    factors: tuple[Mapping[str, float], ...]
    """By what each upload's arrays are multiplied, by name; honest ones by nothing."""

    @classmethod
    def of(
        cls,
        uploads: Sequence[Upload],
        initial: Mapping[str, Tensor],
        weighed: Sequence[WeightCheck] | None = None,
        weights: str = "num-examples",
    ) -> "Mergeable":
        """Leave out what is unfit.

        Parameters
        ----------
        uploads : Sequence[Upload]
            At least one, all with the same names and shapes.
        initial : Mapping[str, Tensor]
            θ₀'s state dict, on the CPU.
        weighed : Sequence[WeightCheck] | None
            What :func:`~fedmitr_app.uploads.compare` found of each; None: nothing.
        weights : {"num-examples", "capped-examples", "uniform"}
            What each upload counts for; see :func:`~fedmitr_app.uploads.example_counts`.

        Raises
        ------
        UploadError
            If there is no upload at all. With none that is fit, merges are θ₀.
        ConfigError
            If there are no such weights.
        """
        weighed = [WeightCheck()] * len(uploads) if weighed is None else weighed
        pairs = [each for each in zip(uploads, weighed, strict=True) if not each[1].unfit]
        fit = [upload for upload, _ in pairs]
        shares = client_shares(fit if fit else uploads, weights)
        factors = tuple(dict(found.factors) for _, found in pairs)
        return cls(tuple(fit), tuple(shares[: len(fit)]), initial, factors)

    def arrays(self, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Array]:
        """Yield the arrays, upload after upload: one is in memory at a time."""
        for client, upload in enumerate(self.uploads):
            with safe_open(upload.weights, framework="pt") as stored:
                for name in filter(wanted, stored.keys()):
                    value = stored.get_tensor(name)
                    dtype, value = value.dtype, value.to(torch.float64)
                    yield Array(client, name, self._scaled_back(client, name, value), dtype)

    def in_trunk(self, name: str) -> bool:
        """Say whether an array was trained and is no classifier: where merges differ."""
        return name not in HEAD and self.initial[name].is_floating_point()

    def _scaled_back(self, client: int, name: str, value: Tensor) -> Tensor:
        own = self.factors[client]
        if not own:
            return value
        if not is_fused(name, value):
            return value * own.get(name, 1.0)
        thirds = zip("qkv", value.chunk(3), strict=True)
        return torch.cat(
            [third * own.get(part_name(name, letter), 1.0) for letter, third in thirds]
        )


def in_type(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float64 values in an array's own type.

    Integers are rounded to the nearest; truth values follow the majority by weight.
    """
    if dtype == torch.bool:
        return value > 0.5
    if not dtype.is_floating_point:
        value = value.round()
    return value.to(dtype)
