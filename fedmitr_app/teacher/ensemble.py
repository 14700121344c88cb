"""The uploaded models as one frozen teacher."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fedmitr_app.config import NEED_LABEL_COUNTS, TeacherConfig
from fedmitr_app.models import OffloadedViT, PatchViT, StackedViT
from fedmitr_app.teacher.combine import combine_logits, share_out, without_shares
from fedmitr_app.teacher.probing import prior_shift, prior_weights, priors_of
from fedmitr_app.teacher.screening import clipping
from fedmitr_app.uploads import most_lack_class_means
from fedmitr_app.utils.memory import Halving

logger = logging.getLogger(__name__)

Probe = Callable[[], Tensor]
"""Gives the K models' logits of generic images, ``[K, n, classes]`` on their device."""


class ClientModel(NamedTuple):
    """One upload, ready to teach."""

    key: str
    model: PatchViT
    num_examples: int
    label_counts: tuple[int, ...] | None = None
    shares: Tensor | None = None
    """Its classes' shares of its images, ``[C]``, where its head says them."""
    class_means: Tensor | None = None
    """Likewise their mean features ``[C, D]``, zeros for a class that it doesn't hold."""


class TeacherOutput(NamedTuple):
    """Combined outputs of the ensemble."""

    logits: Tensor
    """``[B, classes]``"""
    patch_logits: Tensor | None
    """``[B, n, classes]``"""


@dataclass(frozen=True)
class Teacher:
    """K frozen models and how to combine them.

    ``class_weights`` is ``[K, classes]``: each client's estimated knowledge of each class
    for the combinations that weigh classes, else its weight repeated. ``logit_shift``, of the
    same shape, is taken away from the clients' logits before they are combined, and before that
    each client's are multiplied by its ``logit_scale``, ``[K]`` or ``[K, classes]``.
    """

    models: tuple[PatchViT, ...]
    combine: str
    class_weights: Tensor
    logit_shift: Tensor | None = None
    logit_scale: Tensor | None = None
    class_means: tuple[Tensor | None, ...] = ()
    """Each client's mean features ``[C, D]``; None for one whose head says nothing of them."""
    keys: tuple[str, ...] = ()
    """What its members are called."""
    halving: Halving = field(default_factory=lambda: Halving("asking the teacher"), compare=False)

    @classmethod
    def build(
        cls,
        clients: Sequence[ClientModel],
        config: TeacherConfig,
        probe: Probe,
        device: torch.device | None = None,
    ) -> "Teacher":
        """Freeze the clients' models and work out their weights.

        ``label-aware`` weighs logits by the label counts that clients share; ``prior-shared``
        puts those in the place of the probed priors, all else equal. Without every client's
        both fall back to prior probing, with a warning: the round is not lost over an opt-in.
        ``class-means`` reads label counts off heads of class means; who has another one teaches
        nothing, and where most have it falls back to ``mean-logits``, likewise.

        Parameters
        ----------
        clients : Sequence[ClientModel]
            In the order of their keys.
        config : TeacherConfig
            The combination and its settings.
        probe : Probe
            Only called by what needs it: class priors, and the size of logits.
        device : torch.device, optional
            That answers; by default the models'.
        """
        models = tuple(client.model.eval().requires_grad_(False) for client in clients)
        combine = config.combine
        counts = [client.label_counts for client in clients]
        if combine in NEED_LABEL_COUNTS and None in counts:
            missing = ", ".join(client.key for client in clients if client.label_counts is None)
            logger.warning(
                "teacher.combine = '%s' needs label counts, which %s did not share "
                "(client.share-label-counts); using 'prior-probed' instead.",
                combine,
                missing,
            )
            combine = "prior-probed"
        shares = head_shares(clients) if combine == "class-means" else None
        if combine == "class-means" and shares is None:
            combine = "mean-logits"
        device = device or next(models[0].parameters()).device
        sizes = torch.tensor([[float(client.num_examples)] for client in clients], device=device)
        classes, shift, scale = models[0].num_classes, None, None
        weights = everyone = torch.ones_like(sizes).expand(-1, classes)
        if shares is not None:
            shares = shares.to(device)
            weights = sizes * shares
            everyone = (shares.sum(1, keepdim=True) > 0).float().expand(-1, classes)
            # A merged head whose rows were made equally long holds no shares, nor biases.
            biased = torch.stack([model.vit.head.bias.any() for model in models]).to(device)
            scale = torch.where(biased.unsqueeze(1), without_shares(shares), 1.0)
        if config.defence == "clip":
            logits = probe()
            loud = clipping(logits if scale is None else logits * scale.unsqueeze(1))
            scale = loud if scale is None else scale * loud.unsqueeze(1)
        if combine == "label-aware":
            weights = torch.tensor(counts, device=device).float()
        elif combine == "prior-shared":
            held = torch.tensor(counts, device=device).float()
            priors = held / held.sum(1, keepdim=True)
            weights, shift = prior_weights(priors, sizes), prior_shift(priors)
        elif combine in ("prior-probed", "prior-confidence"):
            logits = probe()
            priors = priors_of(logits if scale is None else logits * scale.reshape(-1, 1, 1))
            weights, shift = prior_weights(priors, sizes), prior_shift(priors)
        elif combine == "num-examples":
            weights = sizes.expand(-1, classes)
        # A class that nobody claims is answered by everyone alike.
        nobody = weights.sum(0, keepdim=True) <= 0
        weights = torch.where(nobody, everyone, weights)
        if device.type != "cpu":  # where they are mapped from disk, which copies would not be
            models = tuple(model.rounded() for model in models)
        means = [client.class_means for client in clients]
        told = tuple(None if each is None else each.float().to(device) for each in means)
        keys = tuple(client.key for client in clients)
        return cls(models, combine, weights, shift, scale, told, keys)

    @property
    def offloaded(self) -> bool:
        """Whether its weights are elsewhere, so that few models may be held at once."""
        return any(isinstance(model, OffloadedViT) for model in self.models)

    @cached_property
    def stack(self) -> StackedViT | None:
        """The models as one, on a copy of their weights; None if they can't be stacked."""
        return StackedViT(self.models) if StackedViT.fits(self.models) else None

    @cached_property
    def stackable(self) -> bool:
        """Whether stacking its models may pay, for some number of patches."""
        return StackedViT.small(self.models) and StackedViT.fits(self.models)

    def to(self, device: torch.device) -> "Teacher":
        """Return a copy on a device; models that only visit one stay where they are."""

        def there(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        models = tuple(
            model if isinstance(model, OffloadedViT) else copy.deepcopy(model).to(device)
            for model in self.models
        )
        return replace(
            self,
            models=models,
            class_weights=self.class_weights.to(device),
            logit_shift=there(self.logit_shift),
            logit_scale=there(self.logit_scale),
            class_means=tuple(map(there, self.class_means)),
        )

    @property
    def normalised_weights(self) -> Tensor:
        """Each class's weights over the clients, summing to 1: ``[K, classes]``."""
        return self.class_weights / self.class_weights.sum(0)

    @cached_property
    def taught(self) -> Tensor:
        """Which classes a client's head has learnt, ``[K, classes]`` bool on the CPU.

        All, unless rows are zero: a client that fits its head first, or makes it of class means,
        leaves those of the classes that it doesn't hold so (``client.head_first``,
        ``client.head``; of the former not by cross-entropy).
        """
        rows = [model.vit.head.weight.detach().abs().amax(1) > 0 for model in self.models]
        return torch.stack(rows).cpu()

    def combine_logits(self, logits: Tensor, members: Tensor | None = None) -> Tensor:
        """Combine stacked client logits, scaled and shifted, see :func:`combine_logits`."""
        if self.logit_scale is not None:
            scale = self.logit_scale.reshape(len(logits), *[1] * (logits.dim() - 2), -1)
            logits = logits * scale
        if self.logit_shift is not None:
            shape = (len(logits), *[1] * (logits.dim() - 2), -1)
            logits = logits - self.logit_shift.reshape(shape)
        return combine_logits(logits, self.combine, self.class_weights, members)

    def image_weights(self, targets: Tensor, members: Tensor | None = None) -> Tensor:
        """Each client's share in each image, by how well it knows the image's targets.

        Parameters
        ----------
        targets : Tensor
            Class probabilities ``[B, classes]``.
        members : Tensor, optional
            ``[K, B]`` bool, the clients that serve each image.

        Returns
        -------
        Tensor
            ``[K, B]``, summing to 1 over the clients.
        """
        weights = self.normalised_weights @ targets.T
        if members is not None:
            weights = share_out(weights, members)
        return weights / weights.sum(0)

    def density(self, cls_attn: Tensor, targets: Tensor, members: Tensor | None = None) -> Tensor:
        """Mean of the clients' class attention, weighted by who knows the targets.

        Parameters
        ----------
        cls_attn : Tensor
            ``[K, B, n]``
        targets : Tensor
            Class probabilities ``[B, classes]``.
        members : Tensor, optional
            ``[K, B]``, the clients that serve each image.

        Returns
        -------
        Tensor
            ``[B, n]``
        """
        weights = self.image_weights(targets, members)
        return (weights.unsqueeze(-1) * cls_attn).sum(0)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, keep_idx: Tensor | None = None, *, patch_logits: bool = False
    ) -> TeacherOutput:
        """Run every client on ``images`` ``[B, C, H, W]`` and combine, without gradients."""

        def answer(rows: slice) -> TeacherOutput:
            kept = None if keep_idx is None else keep_idx[rows]
            outputs = [
                model(images[rows], kept, patch_logits=patch_logits) for model in self.models
            ]
            combined = self.combine_logits(torch.stack([output.logits for output in outputs]))
            if not patch_logits:
                return TeacherOutput(combined, None)
            tokens = [each.patch_logits for each in outputs if each.patch_logits is not None]
            return TeacherOutput(combined, self.combine_logits(torch.stack(tokens)))

        found = self.halving.over(len(images), answer)
        if len(found) == 1:
            return found[0]
        tokens = [part.patch_logits for part in found if part.patch_logits is not None]
        return TeacherOutput(
            torch.cat([part.logits for part in found]), torch.cat(tokens) if tokens else None
        )


def head_shares(clients: Sequence[ClientModel], warn: bool = True) -> Tensor | None:
    """Return the shares of the classes that clients' heads say, ``[K, classes]``.

    Zeros for a client that has another head; None if most have, both with a warning.
    """
    shares, keys = [client.shares for client in clients], [client.key for client in clients]
    if most_lack_class_means(shares, keys, "teacher.combine = 'class-means'", "mean-logits", warn):
        return None
    nothing = torch.zeros(clients[0].model.num_classes)
    return torch.stack([nothing if own is None else own.float().cpu() for own in shares])
