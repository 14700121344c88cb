"""One model from the uploads' weights, as the settings say."""

from collections.abc import Callable

from torch import Tensor

from fedmitr_app.config import MergeConfig
from fedmitr_app.merging.additive import additive_head
from fedmitr_app.merging.averaging import average, class_wise_head, cosine_head
from fedmitr_app.merging.knowledge import class_weights
from fedmitr_app.merging.mergeable import Mergeable
from fedmitr_app.merging.stretching import stretch
from fedmitr_app.merging.ties import ties


def merge(taken: Mergeable, config: MergeConfig, priors: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Merge the uploads: trunk and classifier head each in their own way.

    Parameters
    ----------
    config : MergeConfig
        By default the plain average.
    priors : Callable[[], Tensor]
        Gives the class prior that each client's answers show, ``[K, C]``; only called where
        ``merge.knowledge`` needs it.

    Returns
    -------
    dict[str, Tensor]
        A state dict, timm's keys, on the CPU; θ₀'s if there is no upload that is fit.
    """
    if not taken.uploads:
        return dict(taken.initial)
    if config.trunk == "ties":
        state = ties(taken, config.density)
    else:
        state = average(taken)
    state = stretch(taken, state, config.scale)
    if config.head == "class-wise":
        state |= class_wise_head(taken, class_weights(taken, config.knowledge, priors))
    elif config.head == "cosine":
        state |= cosine_head(state)
    elif config.head == "additive":
        state |= additive_head(taken)
    return state
