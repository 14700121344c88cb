"""What every one-shot method is given.

Knows tensors and typed settings only: any process, any device, no Flower.
"""

import copy
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmitr_app.config import decisive
from fedmitr_app.errors import UploadError
from fedmitr_app.inversion import draw_initial_images
from fedmitr_app.merging import Mergeable, average, merge
from fedmitr_app.methods.settings import MethodSettings
from fedmitr_app.models import OffloadedViT, PatchViT
from fedmitr_app.teacher import (
    ClientModel,
    Teacher,
    Trust,
    head_shares,
    judge_answers,
    priors_of,
    probe,
    same_answers,
)
from fedmitr_app.uploads import Upload, WeightCheck, check_weights, example_counts, read_class_means
from fedmitr_app.utils.files import arrays_digest, json_line
from fedmitr_app.utils.memory import room_for
from fedmitr_app.utils.metrics_log import Record
from fedmitr_app.utils.progress import Progress, headline
from fedmitr_app.utils.randomness import generator

_log = logging.getLogger(__name__)

MERGED = "merged"
"""The merged model's key among the teacher's members."""


@dataclass(frozen=True)
class Task:
    """One round's uploads and the settings: all that a method sees.

    Methods read the clients' models and never change them.
    """

    model: PatchViT
    """Holds θ₀, on the CPU; not changed."""
    uploads: tuple[Upload, ...]
    """In the order of their keys; weights are on disk."""
    clients: tuple[ClientModel, ...]
    """The same, loaded, on the device that does the work or visiting it."""
    settings: MethodSettings
    folder: Path
    """For the method's files; its pool of synthetic images stays there."""
    device: torch.device
    """That does the work."""
    label: str = ""
    """Put before the stages' names in progress lines."""
    record: Record = lambda stage, **values: None
    """Gets each step's numbers while they are made."""
    real_images: Tensor | None = None
    """Training images ``[n, C, H, W]`` as model input: no server has them, only a reference may."""

    @classmethod
    def load(
        cls,
        model: PatchViT,
        uploads: Sequence[Upload],
        settings: MethodSettings,
        folder: Path,
        device: torch.device,
    ) -> "Task":
        """Load every upload into a model of its own, in the uploads' order.

        On the CPU the weights stay on disk, mapped: the system reads them when they are used,
        and may drop them when memory is short, so that it holds what is in use, not K models.
        Where a GPU has no room for all, they stay there too, and visit it one after the other.
        """
        size = len(uploads) * sum(value.nbytes for value in model.state_dict().values())
        if model.precision == "bfloat16":
            size += size // 2  # the teacher's are rounded copies
        visiting = not room_for(size, device)
        if visiting:
            _log.info(
                "%s has no room for %.1f GiB of clients' weights beside the work: they stay in "
                "main memory and visit it one model at a time.",
                device,
                size / 2**30,
            )
        home, models, states = torch.device("cpu") if visiting else device, [], []
        for upload in uploads:
            client = copy.deepcopy(model).to(home)
            client.vit.load_state_dict(upload.load_state(), assign=home.type == "cpu")
            client.eval().requires_grad_(False)
            states.append(client.vit.state_dict())
            models.append(OffloadedViT(client) if visiting else client)
        counts = example_counts(uploads, settings.weighting)
        told = read_class_means(states, model.vit.state_dict())
        clients = [
            ClientModel(upload.client, client, count, upload.label_counts, *(one or ()))
            for upload, client, count, one in zip(uploads, models, counts, told, strict=True)
        ]
        return cls(model, tuple(uploads), tuple(clients), settings, folder, device)

    @cached_property
    def origin(self) -> str:
        """A digest of all that decides the result: what was made for another is of no use."""
        facts = [[each.digest, each.num_examples, each.label_counts] for each in self.uploads]
        start = {name: value.numpy() for name, value in self.model.vit.state_dict().items()}
        parts = [facts, decisive(self.settings), arrays_digest(start)]
        return hashlib.sha256(json_line({"parts": parts}).encode()).hexdigest()

    @cached_property
    def weight_checks(self) -> tuple[WeightCheck, ...]:
        """What each upload's weights say of it, beside the others'."""
        return tuple(check_weights(self.uploads, self._initial))

    @cached_property
    def average(self) -> dict[str, Tensor]:
        """The uploads' average by number of examples, timm's keys, on the CPU.

        Without those whose weights can't be averaged with the others', and what was scaled scaled
        back.
        """
        return self.averaged(self.settings.weighting)

    def averaged(self, weighting: str) -> dict[str, Tensor]:
        """Average what can be averaged; θ₀ if there is nothing."""
        return average(self._mergeable(weighting))

    @cached_property
    def merged(self) -> dict[str, Tensor]:
        """The uploads merged as ``merge.*`` says, by default averaged.

        Where loud models are only turned down, without the suspicious ones: their logits can be
        clipped, their weights not. Other defences leave them out altogether.
        """
        distrusted: set[str] = set()
        if self.settings.teacher.defence == "clip":
            pairs = zip(self.clients, self.trust, strict=True)
            distrusted = {client.key for client, trust in pairs if trust.reason}
        if len(distrusted) == len(self.uploads):
            distrusted = set()
        taken = self._mergeable(self.settings.weighting, distrusted)

        def priors() -> Tensor:
            rows = [self.uploads.index(upload) for upload in taken.uploads]
            return priors_of(self.probed[rows])

        return merge(taken, self.settings.merge, priors)

    def model_of(self, state: Mapping[str, Tensor]) -> PatchViT:
        """Return a model of its own with a state dict of the task's, where the work is done."""
        model = copy.deepcopy(self.model)
        model.vit.load_state_dict(state)
        return model.to(self.device).eval()

    def _mergeable(self, weighting: str, without: Set[str] = frozenset()) -> Mergeable:
        pairs = zip(self.uploads, self.weight_checks, strict=True)
        uploads, weighed = zip(
            *(pair for pair in pairs if pair[0].client not in without), strict=True
        )
        return Mergeable.of(uploads, self._initial, weighed, weighting)

    @property
    def _initial(self) -> Mapping[str, Tensor]:
        return self.model.vit.state_dict()

    @cached_property
    def probed(self) -> Tensor:
        """The clients' logits of the same procedural images, ``[K, n, classes]``."""
        return self._probe(self.clients)

    def _probe(self, clients: Sequence[ClientModel]) -> Tensor:
        count, models = self.settings.teacher.probe_images, [each.model for each in clients]
        with Progress(
            "measuring the clients' class priors", count * len(models), opening=False
        ) as progress:
            rng = generator(self.settings.seed, "probing")
            images = draw_initial_images("procedural", count, self.model.spec, rng)
            return probe(models, images.to(self.device), on_batch=progress.advance)

    @cached_property
    def trust(self) -> tuple[Trust, ...]:
        """What each client's answers to those images say of it."""
        return tuple(judge_answers(self.probed, self._copies(), self._shares))

    def _copies(self) -> dict[int, str]:
        """Find models that are another client's, and whose: those that can be done without.

        Either the weights can't be averaged and most of them are those of one whose can, so that
        something was done to a copy; or the answers are the same, whatever was done to it. Of
        models that have hardly been trained the answers alone are the same too. Of each group
        one stays, if possible one whose weights can be averaged.
        """
        keys, weighed = [each.key for each in self.clients], self.weight_checks
        groups: dict[int, list[int]] = {}
        for number, first in enumerate(same_answers(self.probed)):
            groups.setdefault(first, []).append(number)
        found: dict[int, str] = {}
        for group in groups.values():
            kept = min(group, key=lambda number: (bool(weighed[number].unfit), number))
            copies = [number for number in group if number != kept and weighed[number].reasons]
            found |= dict.fromkeys(copies, keys[kept])
        for number, each in enumerate(weighed):
            if each.unfit and each.alike in keys and not weighed[keys.index(each.alike)].unfit:
                found.setdefault(number, each.alike)
        return found

    def defended(self, warn: bool = True) -> "Task":
        """Return the task as ``teacher.defence`` leaves it: perhaps without some clients.

        Without those, at any rate, whose answers aren't finite numbers, or beyond all measure, or
        another client's. What is found of each is logged, if ``warn``.

        Raises
        ------
        UploadError
            If nobody is left.
        """
        strict, kept = self.settings.teacher.defence == "leave-one-out", []
        found = zip(self.clients, self.trust, self.weight_checks, strict=True)
        for number, (client, trust, weighed) in enumerate(found):
            left_out = trust.left_out(strict) or (strict and weighed.suspicious)
            if not left_out:
                kept.append(number)
            done = "left out" if left_out else "stays all the same (teacher.defence)"
            told = weighed.findings if left_out else weighed.reasons
            for reason in filter(None, [trust.reason, *told] if warn else []):
                _log.warning("%s is suspicious, and %s: %s.", client.key, done, reason)
        if len(kept) == len(self.clients):
            return self
        if not kept:
            pairs = zip(self.trust, self.weight_checks, strict=True)
            reasons = {trust.reason or weighed.reasons[0] for trust, weighed in pairs}
            raise UploadError(f"No upload is of any use: {'; '.join(sorted(reasons))}.")
        rest = replace(
            self,
            uploads=tuple(self.uploads[number] for number in kept),
            clients=tuple(self.clients[number] for number in kept),
        )
        judged = tuple(self.weight_checks[number] for number in kept)
        return rest.remember(probed=self.probed[kept], weight_checks=judged)

    @cached_property
    def _shares(self) -> Tensor | None:
        """Classes' shares of each client's images, read off its head, if the teacher reads them."""
        if self.settings.teacher.combine != "class-means":
            return None
        found = head_shares(self.clients, warn=False)
        return None if found is None else found.to(self.device)

    @cached_property
    def members(self) -> tuple[ClientModel, ...]:
        """Who teaches: the clients, and with ``teacher.merged`` their merged model.

        That is a client like the others, which holds all examples.
        """
        if not self.settings.teacher.merged:
            return self.clients
        model, visiting = copy.deepcopy(self.model), isinstance(self.clients[0].model, OffloadedViT)
        model.vit.load_state_dict(self.merged)
        model.eval().requires_grad_(False)
        model = OffloadedViT(model) if visiting else model.to(self.device)
        counts = [client.label_counts for client in self.clients]
        whole = None if None in counts else tuple(map(sum, zip(*counts, strict=True)))
        sizes = [client.num_examples for client in self.clients]
        size, shares = sum(sizes), None
        if self._shares is not None:
            known = self._shares.new_tensor(sizes) @ self._shares
            # Without whose heads say nothing: it counts for as much as those that teach.
            size, shares = round(float(known.sum())), known / known.sum()
        return (*self.clients, ClientModel(MERGED, model, size, whole, shares))

    @cached_property
    def teacher(self) -> Teacher:
        """The members combined as the settings say; priors are probed on procedural images."""
        others = self.members[len(self.clients) :]

        def probed() -> Tensor:
            return torch.cat([self.probed, self._probe(others)]) if others else self.probed

        teacher = Teacher.build(self.members, self.settings.teacher, probed, self.device)
        if not self.label:  # what runs beside it asks the same one
            count = len(self.members)
            headline(f"teacher: ensemble of {count} models, combined by {teacher.combine}")
        return teacher

    def alter(self, change: Callable[[MethodSettings], MethodSettings], **fields: Any) -> "Task":
        """Return the same uploads under changed settings; the teacher too, unless it changes."""
        settings = change(self.settings)
        altered = replace(self, settings=settings, **fields)
        found = {"weight_checks"}
        if (settings.teacher, settings.merge) == (self.settings.teacher, self.settings.merge):
            _ = self.teacher  # worked out here, once
            found |= {"probed", "merged", "members", "teacher"}
        return altered.remember(**{name: vars(self)[name] for name in found & vars(self).keys()})

    def remember(self, **found: Any) -> "Task":
        """Take what was found elsewhere: ``probed``, ``weight_checks``, ``teacher``."""
        self.__dict__.update(found)
        return self
