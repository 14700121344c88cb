"""What each image is inverted for, and which clients serve it (choice: diversity devices)."""

import torch
from torch import Tensor

from fedmitr_app.teacher import Teacher


def draw_targets(kind: str, count: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Draw class probabilities ``[count, num_classes]`` on the CPU.

    Parameters
    ----------
    kind : str
        ``balanced``: one class each, all classes alike often. ``mixed``: a random share
        between that class and another.
    """
    order = torch.randperm(num_classes, generator=generator)
    first = order[torch.arange(count) % num_classes]
    hard = torch.eye(num_classes)[first]
    if kind == "mixed":
        away = torch.randint(1, max(num_classes, 2), (count,), generator=generator)
        other = (first + away) % num_classes
        share = torch.rand(count, 1, generator=generator)
        return share * hard + (1 - share) * torch.eye(num_classes)[other]
    return hard


def pick_candidates(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Choose for each target the candidate that the teacher already reads most like it.

    Greedy in the order of the targets, without repeats (choice): most generic images look
    like nothing the clients know, and the inversion moves an image only so far.

    Parameters
    ----------
    log_probs : Tensor
        The teacher's log-probabilities of the candidates, ``[M, classes]``, M >= B.
    targets : Tensor
        Class probabilities ``[B, classes]``.

    Returns
    -------
    Tensor
        Indices of the chosen candidates, ``[B]``.
    """
    scores = targets.to(log_probs) @ log_probs.T
    chosen = torch.empty(len(targets), dtype=torch.long)
    for row in range(len(targets)):
        best = int(scores[row].argmax())
        chosen[row] = best
        scores[:, best] = -torch.inf
    return chosen


def draw_members(
    teacher: Teacher, targets: Tensor, per_image: int, generator: torch.Generator
) -> Tensor | None:
    """Draw ``per_image`` clients for each image, the likelier the better they know its target.

    Those that were never taught it (:attr:`Teacher.taught`) only where there is nobody else,
    whatever the teacher's weights say.

    Returns
    -------
    Tensor or None
        ``[K, B]`` bool on the CPU; ``None`` when every client serves every image
        (``per_image`` is 0 or at least K).
    """
    clients = len(teacher.models)
    if per_image == 0 or per_image >= clients:
        return None
    knows = teacher.normalised_weights.cpu() * teacher.taught
    odds = (knows @ targets.cpu().to(knows).T).T
    chosen = torch.multinomial(odds.clamp_min(1e-6), per_image, generator=generator)
    return torch.zeros(len(targets), clients, dtype=torch.bool).scatter_(1, chosen, True).T
