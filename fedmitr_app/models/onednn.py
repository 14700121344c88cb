"""Float32 linear maps through oneDNN instead of MKL.

On a CPU torch multiplies float32 matrices by MKL, which leaves half of what some AMD processors
can do undone; only bfloat16 goes through oneDNN. An operator of torch's own compiler lets float32
follow (torch 2.15). Where it pays, :mod:`fedmitr_app.models.auto_precision` measures.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class OneDNN(TorchFunctionMode):
    """Lets every linear map that is worked out within go through :func:`linear`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See torch; called for each of its functions, outside of itself."""
        if func is F.linear:
            func = linear
        return func(*args, **(kwargs or {}))


def linear(seen: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``seen`` ``[..., in]`` times ``weight`` ``[out, in]`` transposed, plus the bias.

    As ``F.linear`` up to rounding, with gradients of any order; by ``F.linear`` itself where
    oneDNN can't: not float32, not on a CPU, under autocast, without rows, or not in this torch.
    """
    parts = (seen, weight) if bias is None else (seen, weight, bias)
    plain = all(part.dtype == torch.float32 and part.device.type == "cpu" for part in parts)
    if not plain or not seen.numel() or torch.is_autocast_enabled("cpu") or not available():
        return F.linear(seen, weight, bias)
    product: Tensor = _Linear.apply(seen, weight, bias)
    return product


def available() -> bool:
    """Say whether this torch has oneDNN, and the operator that multiplies by it."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Linear(torch.autograd.Function):
    """The operator, which torch itself can't differentiate."""

    @staticmethod
    def forward(ctx: Any, seen: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        trained = ctx.needs_input_grad[1]
        ctx.save_for_backward(weight, seen if trained else None)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(seen, weight, bias, "none", [], "")
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, seen = ctx.saved_tensors
        to_seen, to_weight, to_bias = ctx.needs_input_grad
        flat = grad.flatten(0, -2)
        return (
            _Linear.apply(grad, weight.t(), None) if to_seen else None,
            # By MKL: of oneDNN's forms none is faster with two matrices this narrow (Zen 4).
            flat.t() @ seen.flatten(0, -2) if to_weight else None,
            flat.sum(0) if to_bias else None,
        )
