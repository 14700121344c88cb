"""Isotropic merging in the common subspace (Iso-C).

Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific
Subspaces", ICML 2025.
"""

import torch
from torch import Tensor

from fedmitr_app.merging.averaging import average
from fedmitr_app.merging.mergeable import Mergeable


def isotropic(taken: Mergeable, scale: float) -> dict[str, Tensor]:
    """Return the average with each matrix's step from θ₀ as long in all its directions.

    ``U S Vᵀ`` becomes ``scale · mean(S) · U Vᵀ`` (stated; there of the sum of the clients' steps,
    here of their weighted mean, whose scale they have to choose either way). Directions that
    nobody took, of singular values that are rounding alone, stay out of it (choice). What is no
    matrix, and the head, is averaged.
    """
    state = average(taken)
    for name, value in state.items():
        if value.dim() != 2 or not taken.in_trunk(name):
            continue
        start = taken.initial[name].double()
        left, sizes, right = torch.linalg.svd(value.double() - start, full_matrices=False)
        rounding = torch.finfo(value.dtype).eps * value.double().norm()
        taken_up = sizes > rounding
        if taken_up.any():
            step = sizes[taken_up].mean() * left[:, taken_up] @ right[taken_up]
            state[name] = (start + scale * step).to(value.dtype)
    return state
