"""Judge each client's model by its answers, against those of the others (choice).

All that is looked at are logits on generic images that nobody's data decides, the ones that
class priors are read from. Three figures tell most broken or malicious models from honest ones
that know few classes:

- ``size``: the root mean square of the centred logits, over the median client's. A model whose
  weights were blown up shouts the others down.
- ``information``: the mutual information between image and prediction, ``H(mean p) - mean H(p)``,
  over the median client's. A model that answers everything alike has none.
- ``agreement``: the correlation over images between the model's logit of a class and the other
  trusted ones' (weighed by their priors), averaged over the classes that both sides know. Honest
  clients agree a little even under heavy skew; a model that learnt flipped labels disagrees.

Copies are told apart by who calls: one model under several keys would count several times, also
where its weights were put in another order for each.

The limits were chosen on validation images of the digits' partitions with seeds 100 to 102 (5
clients, Dirichlet 0.1; one or two of them attacking in eight ways), where they cost honest
rounds nothing. Attackers that together know most of a class, and say the same, can't be found
so: nor can backdoors, whose answers to generic images are honest.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedmitr_app.teacher.combine import without_shares
from fedmitr_app.teacher.probing import priors_of

MOST_SIZE, LEAST_INFORMATION, LEAST_AGREEMENT = 3.0, 0.1, -0.1
UNUSABLE_SIZE = 1e4  # no student survives such logits, nor an average such weights
CLIP = 1.5
SAME = 0.01
"""Of the spread of a model's logits over images: below it two give the same answers."""
NOT_FINITE = "its answers are not finite numbers"
_TINY = 1e-9


class Trust(NamedTuple):
    """One client's figures, and why it is distrusted."""

    size: float
    information: float
    agreement: float
    """Not a number for one that was put aside before, and for one alone."""
    reason: str = ""
    """Empty for a client that is trusted."""
    copy: bool = False
    """Whether the reason is that another client's model is the same."""

    @property
    def broken(self) -> bool:
        """Whether nothing can be done with the model: no defence need be asked for."""
        return self.reason == NOT_FINITE or (bool(self.reason) and self.size > UNUSABLE_SIZE)

    def left_out(self, strict: bool) -> bool:
        """Whether the client goes: broken, a copy, or under a strict defence distrusted."""
        return self.broken or self.copy or (strict and bool(self.reason))


def judge_answers(
    logits: Tensor, copies: Mapping[int, str] | None = None, shares: Tensor | None = None
) -> list[Trust]:
    """Judge K clients by their logits ``[K, n, classes]`` on the same n images.

    Whoever agrees least with the rest is put aside, one after the other, while that is below
    the limit and more than half of all clients remain. If everybody is distrusted, nobody is,
    but for those whose answers aren't finite numbers.

    Parameters
    ----------
    copies : Mapping[int, str], optional
        Clients whose models are another's, and its key: they go first, and vote nowhere.
    shares : Tensor, optional
        Classes' shares of each client's images, ``[K, classes]``, where heads of class means say
        them: they need not be guessed, and are taken out of the logits. Zeros for another head.
    """
    copies = copies or {}
    logits = logits if shares is None else logits * without_shares(shares).unsqueeze(1)
    priors = priors_of(logits)
    if shares is not None:
        priors = torch.where(shares.any(1, keepdim=True), shares, priors)
    own = [client for client in range(len(logits)) if client not in copies]
    sizes = relative_sizes(logits, own)
    information = mutual_information(logits)
    information = information / information[own].nanmedian().clamp_min(_TINY)
    reasons = [""] * len(logits)
    for client in range(len(logits)):
        if not logits[client].isfinite().all():
            reasons[client] = NOT_FINITE
        elif client in copies:
            whose = copies[client]
            reasons[client] = f"its model, or most of it, is that of {whose!r}, and counts once"
        elif not sizes[client] <= MOST_SIZE:
            reasons[client] = f"its logits are {sizes[client]:.3g} times the median client's"
        elif not information[client] >= LEAST_INFORMATION:
            reasons[client] = "it answers nearly every image alike"
    kept = [client for client, reason in enumerate(reasons) if not reason]
    agreement = torch.full((len(logits),), torch.nan)
    while len(kept) > 1:
        found = agreements(logits[kept], priors[kept])
        agreement[kept] = found.cpu()
        worst = int(found.argmin())
        if found[worst] >= LEAST_AGREEMENT or 2 * (len(kept) - 1) <= len(own):
            break
        reasons[kept.pop(worst)] = "its answers contradict the other clients'"
    if not kept:
        reasons = [
            reason if reason == NOT_FINITE or client in copies else ""
            for client, reason in enumerate(reasons)
        ]
    figures = zip(sizes.tolist(), information.tolist(), agreement.tolist(), reasons, strict=True)
    return [Trust(*each, client in copies) for client, each in enumerate(figures)]


def same_answers(logits: Tensor) -> list[int]:
    """Return for each of K clients the first whose answers ``[K, n, classes]`` are its own too."""
    wide = logits.double()
    wide = wide - wide.mean(-1, keepdim=True)
    spread = (wide - wide.mean(1, keepdim=True)).square().sum((1, 2)).sqrt()
    found: list[int] = []
    for client, answers in enumerate(wide):
        for other in sorted(set(found)):
            apart = (answers - wide[other]).square().sum().sqrt()
            if apart < SAME * torch.minimum(spread[client], spread[other]):
                found.append(other)
                break
        else:
            found.append(client)
    return found


def relative_sizes(logits: Tensor, of: Sequence[int] | None = None) -> Tensor:
    """Return the root mean square of each client's centred logits over the median's, ``[K]``.

    The median is that ``of`` some clients, or of all.
    """
    wide = logits.double()  # the squares of what float32 holds are more than it holds
    sizes = (wide - wide.mean(-1, keepdim=True)).square().mean((1, 2)).sqrt()
    usual = sizes if of is None else sizes[list(of)]
    return (sizes / usual.nanmedian().clamp_min(_TINY)).float()


def clipping(logits: Tensor) -> Tensor:
    """Return what brings every client's logits to ``CLIP`` times the median size at most, ``[K]``.

    By what they say of generic images ``[K, n, classes]``; one factor for all of a client's.
    """
    return (CLIP / relative_sizes(logits).clamp_min(_TINY)).clamp_max(1.0)


def mutual_information(logits: Tensor) -> Tensor:
    """Between image and prediction, in nats, for each client's ``[K, n, classes]``: ``[K]``."""
    probabilities = logits.softmax(-1)
    return _entropy(probabilities.mean(1)) - _entropy(probabilities).mean(1)


def agreements(logits: Tensor, priors: Tensor) -> Tensor:
    """Correlate each of at least two clients' logits with the others', ``[K]``.

    Over the classes that both sides know, by ``priors`` ``[K, classes]``; 0 where there is none.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    found = []
    for client in range(len(logits)):
        others = [other for other in range(len(logits)) if other != client]
        weights = priors[others] / priors[others].sum(0).clamp_min(_TINY)
        rest = (weights.unsqueeze(1) * centred[others]).sum(0)
        known = torch.minimum(priors[client], priors[others].amax(0))
        agreed = (known * _correlation(centred[client], rest)).sum()
        found.append(agreed / known.sum().clamp_min(_TINY))
    return torch.stack(found)


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's, over the first dimension."""
    one, other = one - one.mean(0), other - other.mean(0)
    lengths: Tensor = one.norm(dim=0) * other.norm(dim=0)
    return (one * other).sum(0) / lengths.clamp_min(_TINY)


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities.clamp_min(_TINY).log() * probabilities).sum(-1)
