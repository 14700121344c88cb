"""One client's training on its own shard."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor

from fedmitr_app.config import ClientConfig
from fedmitr_app.errors import DataError, TrainingError
from fedmitr_app.models.patch_vit import PatchViT
from fedmitr_app.partitions import ImageSet
from fedmitr_app.training.augment import augment
from fedmitr_app.training.head import fit_head, shard_features
from fedmitr_app.training.losses import client_loss
from fedmitr_app.training.schedule import resume_schedule, warmup_cosine
from fedmitr_app.uploads import set_class_means

# Skewed shards of a few images give rare, very steep steps.
MAX_GRADIENT_NORM = 1.0


def fit(
    model: PatchViT,
    shard: ImageSet,
    config: ClientConfig,
    *,
    generator: torch.Generator,
    device: torch.device | str,
    on_step: Callable[[Tensor], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Train ``model`` in place on one shard, with AdamW, warm-up and cosine decay.

    With ``config.head_first`` the head is fitted before, on the features that the model gives as
    it comes, and from zero: whatever its rows held is forgotten. With ``config.head =
    "class-means"`` it holds the features' class means, made anew before each epoch and in the end,
    and only the rest is trained.

    Any shard of at least one image of at least one class works: an epoch is cut into
    batches of nearly equal size, none above ``config.batch_size``. With ``config.max_seconds``
    a slow machine takes fewer steps: the learning rate falls as time runs out, and training
    ends with it, after one step at least.

    Parameters
    ----------
    model : PatchViT
        Stays on ``device``, in evaluation mode.
    shard : ImageSet
        Kept in memory as uint8 and normalised batch by batch.
    config : ClientConfig
        Epochs, batch size, optimiser and augmentation.
    generator : torch.Generator
        On the CPU; decides the order of images and their augmentation.
    device : torch.device | str
        Where to train.
    on_step : Callable[[Tensor], None] | None
        Gets each step's loss, still on the device: reading it would stall a GPU's queue.
    clock : Callable[[], float]
        Seconds.

    Returns
    -------
    dict[str, float]
        ``train_loss`` and ``train_accuracy`` over the last epoch, on its augmented images
        as they were seen; ``seconds``, ``steps``, ``epochs``, the last one perhaps unfinished.

    Raises
    ------
    DataError
        If the shard is empty.
    TrainingError
        If the loss becomes infinite or not a number.
    """
    if len(shard) == 0:
        raise DataError(
            "this client holds no training images: give it some, or raise partition.min-samples "
            "above 0 so that every client gets some."
        )
    time_left = _TimeLeft(config, clock)
    model.to(device)
    images, labels = shard.images.to(device), shard.labels.to(device)
    counts = torch.bincount(labels, minlength=model.num_classes)
    loss_of = client_loss(config.loss, counts, config.label_smoothing, config.balance)
    head, means = model.vit.head, config.head == "class-means"

    def features_of(whole: bool = False) -> tuple[Tensor, Tensor]:
        # In a random order: what time leaves out are then images, not classes.
        order = torch.randperm(len(shard), generator=generator).to(device)
        model.eval()
        batches = images[order].split(config.batch_size)
        features = shard_features(model, batches, in_time=lambda: time_left.is_some(whole))
        return features, labels[order[: len(features)]]

    if config.head_first:
        fit_head(head, *features_of(), loss_of, in_time=time_left.is_some)
    if means:
        head.requires_grad_(False)
    steps = _Steps(model, images, labels, config, loss_of, generator, time_left, on_step)
    for epoch in range(config.epochs):
        if steps.over or (means and steps.taken and not time_left.is_some()):
            break
        if means:
            set_class_means(head, *features_of())
        steps.epoch(epoch)
    if means:
        set_class_means(head, *features_of(whole=True), by_share=True)
        head.requires_grad_(True)
    model.eval()
    return {
        "train_loss": steps.loss.item(),
        "train_accuracy": steps.accuracy.item(),
        "seconds": time_left.spent,
        "steps": steps.taken,
        "epochs": math.ceil(steps.taken / steps.batches),
    }


class _TimeLeft:
    """What is left of ``client.max_seconds``, of which there may be no end."""

    def __init__(self, config: ClientConfig, clock: Callable[[], float]) -> None:
        self._clock, self._started = clock, clock()
        self.whole = self.limit = config.max_seconds
        if config.head == "class-means":
            # Their features take a third of an epoch, before each one and in the end.
            self.limit *= 1 - 1 / (4 * config.epochs + 1)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def is_some(self, whole: bool = False) -> bool:
        """Say whether there is time for more: of the steps, or of the whole."""
        seconds = self.whole if whole else self.limit
        return not seconds or self.spent < seconds


class _Steps:
    """The optimiser's steps, epoch by epoch."""

    def __init__(
        self,
        model: PatchViT,
        images: Tensor,
        labels: Tensor,
        config: ClientConfig,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        generator: torch.Generator,
        time_left: _TimeLeft,
        on_step: Callable[[Tensor], None] | None,
    ) -> None:
        self._model, self._images, self._labels = model, images, labels
        self._config, self._loss_of, self._generator = config, loss_of, generator
        self._time_left, self._on_step = time_left, on_step
        self.batches = math.ceil(len(labels) / config.batch_size)
        groups = parameter_groups(model, config.weight_decay, config.head_learning_rate)
        # Fused: a small ViT's many small tensors make the step itself cost a twentieth otherwise.
        self._optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self._all = config.epochs * self.batches
        self._scheduler = warmup_cosine(self._optimizer, self._all, config.warmup)
        self.taken, self.over = 0, False
        self.loss = self.accuracy = torch.zeros((), device=images.device)
        """Over the last epoch, on its images as they were seen."""

    def epoch(self, number: int) -> None:
        """Go through the shard once, or as far as time allows."""
        self._model.train()
        seen = 0
        loss_sum = correct = torch.zeros((), device=self._images.device)
        order = torch.randperm(len(self._labels), generator=self._generator)
        for batch in order.to(self._images.device).tensor_split(self.batches):
            self._hurry()
            if self.over:
                break
            loss, right = self._step(batch)
            self.taken, seen = self.taken + 1, seen + len(batch)
            loss_sum, correct = loss_sum + loss * len(batch), correct + right
            if self._on_step is not None:
                self._on_step(loss)
        # Once an epoch, for the same reason that on_step gets no number.
        _require_finite(loss_sum, number, self._config)
        if seen:
            self.loss, self.accuracy = loss_sum / seen, correct / seen

    def _hurry(self) -> None:
        """Let the learning rate fall as time runs out, and end with it."""
        if limit := self._time_left.limit:
            spent = self._time_left.spent / limit
            self.over = spent >= 1 and self.taken > 0
            if not self.over:
                reached = max(self.taken, int(min(spent, 1.0) * self._all))
                resume_schedule(self._scheduler, reached)

    def _step(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step; return the batch's mean loss and how many were right."""
        model, labels = self._model, self._labels[batch]
        pixels = augment(self._images[batch], self._config.augment, self._generator)
        logits = model(model.spec.normalise(pixels)).logits
        loss = self._loss_of(logits, labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._scheduler.step()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()


def parameter_groups(
    model: PatchViT, weight_decay: float, head_rate: float = 0.0
) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay and those that don't.

    Biases, norms, and what the ViT itself lists (position embedding, class token) don't:
    decay there pulls towards nothing meaningful. With a ``head_rate`` above 0 the head's
    parameters are in groups of their own, with that learning rate.
    """
    vit = model.vit
    head = set(vit.head.parameters()) if head_rate else set()
    split, plain = [], vit.no_weight_decay()
    for group in param_groups_weight_decay(vit, weight_decay, no_weight_decay_list=plain):
        parameters = group["params"]
        split.append({**group, "params": [each for each in parameters if each not in head]})
        own = [each for each in parameters if each in head]
        if own:
            split.append({**group, "params": own, "lr": head_rate})
    return [group for group in split if group["params"]]


def _require_finite(loss: Tensor, epoch: int, config: ClientConfig) -> None:
    if not torch.isfinite(loss):
        raise TrainingError(
            f"client.learning-rate = {config.learning_rate:g} made training diverge: the loss is "
            f"{loss.item()} in epoch {epoch + 1} of {config.epochs}; lower it, or lengthen "
            f"client.warmup = {config.warmup:g}."
        )
