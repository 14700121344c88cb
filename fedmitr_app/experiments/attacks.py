"""Uploads as malicious clients would send them: a test kit for defences.

Each attack takes honest uploads and returns what the attackers send in place of theirs. All of
it passes the checks that uploads are received with: finite numbers of the right shapes. Sources
beside each attack; where none stands, folklore. Those in ``SAME_FUNCTION`` leave the attacker's
answers as they would honestly be, but for rounding: they are aimed at averages of weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_low

import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor

from fedmitr_app.errors import ConfigError
from fedmitr_app.experiments import symmetries
from fedmitr_app.experiments.symmetries import POSITION, State, copied
from fedmitr_app.uploads import Upload
from fedmitr_app.uploads.class_means import HEAD
from fedmitr_app.uploads.example_weights import MOST_EXAMPLES
from fedmitr_app.uploads.upload import moments_file
from fedmitr_app.utils.randomness import generator

SCALE = 100.0
SPIKE, MILD_SPIKE = 1e18, 1e3
COPY_NOISE = 1e-6
LONG = 30.0
LITTLE = 1.5
"""How many standard deviations "a little" is (Baruch et al. choose 0.3 to 1.7)."""
BIAS = 20.0
JITTER = 1e-4
"""Relative noise that makes copies differ: equal ones count once anyway."""


@dataclass(frozen=True)
class Knowledge:
    """What attackers know, all of them together."""

    initial: State
    """θ₀, which the server sent to everyone."""
    honest: Sequence[State]
    """What each attacker would have sent if it were honest."""
    victim: State
    """What an honest client sends, overheard."""


Attack = Callable[[int, Knowledge, torch.Generator], dict[str, Tensor]]
"""From an attacker's number, what they know, and draws on the CPU, to what it sends."""


def gaussian_noise(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Add noise as large as each array's own values."""
    return _each(known.honest[number], lambda value: value + _noise(value, rng) * _size(value))


def sign_flip(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Take the training's step the other way."""
    return _step(known.honest[number], known.initial, -1.0)


def scale(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Take a hundred times the training's step (Bagdasaryan et al., AISTATS 2020)."""
    return _step(known.honest[number], known.initial, SCALE)


def label_flip(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Have learnt class C - 1 - c for c (Tolpegin et al., ESORICS 2020).

    Exact without training again: labels only meet the model in the head's rows.
    """
    return _reheaded(known.honest[number], lambda value: value.flip(0))


def random_weights(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Send noise of each array's size in place of a model."""
    return _each(known.honest[number], lambda value: _noise(value, rng) * _size(value))


def constant_class(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Answer every image with the first class, and be sure of it."""
    state = _reheaded(known.honest[number], torch.zeros_like)
    state[HEAD[1]][0] = BIAS
    return state


def a_little_is_enough(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Stay within the spread of honest uploads (Baruch et al., NeurIPS 2019).

    The mean of what the attackers would have sent, less ``LITTLE`` standard deviations; of a
    single attacker, which sees no spread, of the size of its own step.
    """
    sent = {}
    for name, start in known.initial.items():
        values = torch.stack([state[name].double() for state in known.honest])
        spread = values.std(0) if len(values) > 1 else (values[0] - start.double()).abs()
        sent[name] = (values.mean(0) - LITTLE * spread).to(start.dtype)
    return _each(sent, lambda value: value + JITTER * _noise(value, rng) * _size(value))


def sybils(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Send one flipped model under every key they hold, each with a little noise."""
    flipped = label_flip(0, known, rng)
    return _each(flipped, lambda value: value + JITTER * _noise(value, rng) * _size(value))


def boast(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Send a flipped model, and claim as many examples as are just believed (choice).

    Weights alone can't claim: :func:`attack` does.
    """
    return label_flip(number, known, rng)


def own(change: Callable[[State, torch.Generator], dict[str, Tensor]]) -> Attack:
    """Send one's own model, changed."""
    return lambda number, known, rng: change(known.honest[number], rng)


def spike(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Set one element to a value that drowns every average (choice)."""
    return _spiked(known.honest[number], SPIKE)


def mild_spike(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Set one element to a value that float32 adds without loss (choice)."""
    return _spiked(known.honest[number], MILD_SPIKE)


def near_copy(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Send another client's model with a little noise, so that it counts once more (choice)."""
    return _each(known.victim, lambda value: value * (1 + COPY_NOISE * _noise(value, rng)))


def permuted_head(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Name every class as another one, drawn by chance: flipped labels in another order."""
    return _misnamed(known.honest[number], rng)


def permuted_copy(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Send another client's model with its classes named as others (choice)."""
    return _misnamed(known.victim, rng)


def long_means(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Claim class means ``LONG`` times too far out, in a head that holds them (choice).

    Their shares of the images stay as they were: a bias goes with the square of its row.
    """
    return {
        name: value * LONG ** (1 + HEAD.index(name)) if name in HEAD else value.clone()
        for name, value in known.honest[number].items()
    }


def long_moments(number: int, known: Knowledge, rng: torch.Generator) -> dict[str, Tensor]:
    """Send class moments of features ``LONG`` times too long, beside honest weights (choice).

    Weights alone can't: :func:`attack` does, where clients share moments.
    """
    return copied(known.honest[number])


ATTACKS: dict[str, Attack] = {
    "gaussian-noise": gaussian_noise,
    "sign-flip": sign_flip,
    "scale": scale,
    "label-flip": label_flip,
    "random-weights": random_weights,
    "constant-class": constant_class,
    "a-little-is-enough": a_little_is_enough,
    "sybils": sybils,
    "boast": boast,
    "same-function-norms": own(symmetries.scaled_norms),
    "same-function-head": own(symmetries.scaled_final_norm),
    "same-function-queries": own(symmetries.scaled_queries),
    "same-function-values": own(symmetries.scaled_values),
    "permuted-units": own(symmetries.permuted_units),
    "permuted-channels": own(symmetries.permuted_channels),
    "spike": spike,
    "mild-spike": mild_spike,
    "near-copy": near_copy,
    "permuted-head": permuted_head,
    "permuted-copy": permuted_copy,
    "long-means": long_means,
    "long-moments": long_moments,
}
SAME_FUNCTION = tuple(name for name in ATTACKS if name.startswith("same-function")) + (
    "permuted-units",
    "permuted-channels",
    "long-moments",
)
ABSENT = "absent"
"""In place of an attack: the attackers send nothing, which is what a round is worth without."""


def attack(
    uploads: Sequence[Upload],
    name: str,
    attackers: int,
    initial: State,
    folder: Path,
    seed: int,
) -> list[Upload]:
    """Return a round's uploads with some of them replaced by attackers'.

    Parameters
    ----------
    uploads : Sequence[Upload]
        Honest ones, sorted; not changed.
    name : str
        In ``ATTACKS``, or ``ABSENT``.
    attackers : int
        How many clients attack; drawn by ``seed``, the same ones for every attack.
    initial : Mapping[str, Tensor]
        θ₀'s state dict.
    folder : Path
        Where the attackers' weights are written.

    Raises
    ------
    ConfigError
        If nobody is left to be honest.
    """
    if attackers >= len(uploads):
        raise ConfigError(
            f"attackers = {attackers}: with {len(uploads)} uploads at least one must be honest."
        )
    drawn = torch.randperm(len(uploads), generator=generator(seed, "attackers"))
    chosen = sorted(drawn[:attackers].tolist())
    if name == ABSENT:
        return [upload for index, upload in enumerate(uploads) if index not in chosen]
    victim = next(upload for index, upload in enumerate(uploads) if index not in chosen)
    honest_states = [uploads[index].load_state() for index in chosen]
    known = Knowledge(initial, honest_states, victim.load_state())
    rng, sent = generator(seed, "attack", name), list(uploads)
    honest = [each.num_examples or 1 for n, each in enumerate(uploads) if n not in chosen]
    believed = MOST_EXAMPLES * int(median_low([*honest, *[max(honest)] * attackers]))
    for number, index in enumerate(chosen):
        file = folder / f"attacker-{index:03d}.safetensors"
        save_file(ATTACKS[name](number, known, rng), file)
        sent[index] = replace(uploads[index], weights=file, digest=f"{name}-{index}")
        if uploads[index].moments:
            moments = uploads[index].load_moments()
            if name == "long-moments":
                moments = replace(
                    moments, sums=LONG * moments.sums, scatter=LONG**2 * moments.scatter
                )
            save_arrays(moments.arrays(), moments_file(file))
        if name == "boast":
            sent[index] = replace(sent[index], num_examples=believed)
    return sent


def _each(state: State, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Change what is trained: integers keep their values."""
    return {
        name: change(value).contiguous() if value.is_floating_point() else value.clone()
        for name, value in state.items()
    }


def _spiked(state: State, value: float) -> dict[str, Tensor]:
    state = copied(state)
    state[POSITION][0, 0, 0] = value
    return state


def _misnamed(state: State, rng: torch.Generator) -> dict[str, Tensor]:
    """Give every row of the head another place: a cycle through all classes in a drawn order."""
    order = torch.randperm(len(state[HEAD[1]]), generator=rng)
    moved = torch.empty_like(order)
    moved[order] = order.roll(1)
    return _reheaded(state, lambda value: value[moved])


def _reheaded(state: State, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {
        name: change(value).contiguous() if name in HEAD else value.clone()
        for name, value in state.items()
    }


def _step(state: State, initial: State, factor: float) -> dict[str, Tensor]:
    moved = {
        name: initial[name] + factor * (value - initial[name]) for name, value in state.items()
    }
    return _each(moved, torch.clone)


def _noise(value: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(value.shape, generator=rng).to(value.dtype)


def _size(value: Tensor) -> Tensor:
    """Return the root mean square of an array's values."""
    return value.square().mean().sqrt()
