"""RMSNorm, torch's and that of Hugging Face's models: the input and one number per row are kept.

Written in steps, as these are, plain torch keeps the input, its square's mean and the normalized
input, and a float32 copy where the input is of lower precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from efftrain.memory import kernels
from efftrain.memory.functions.typed import apply, once
from efftrain.memory.origin import Kept, Origin, note_origin
from efftrain.memory.scope import Scope, is_plain, needs_grad


class RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * (offset + weight) over the last dimension."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        eps: float,
        offset: float,
        original: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """Normalize.

        Args:
            ctx: Of autograd.
            input: [..., D].
            weight: [D] or None.
            eps: Added to the mean square.
            offset: Added to the weight, in some models 1.
            original: Computes the output in the model's own order of rounding; None where the
                kernel's is the same.
        """
        if original is None:
            y, rstd = kernels.rms_norm(input, _scale(weight, offset), eps=eps)
        else:
            y = original(input)
            wide = input if input.dtype == torch.float64 else input.float()
            rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(input, weight, rstd)
        ctx.offset = offset
        return y

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of input and weight."""
        (grad,) = grads
        x, weight, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx, dweight = kernels.rms_norm_backward(
            grad, x, _scale(weight, ctx.offset), rstd, needs_dx=needs[0]
        )
        return dx, (dweight.to(weight.dtype) if needs[1] else None), None, None, None


def _scale(weight: Tensor | None, offset: float) -> Tensor | None:
    return weight if weight is None or not offset else offset + weight


def normalize_rms(
    scope: Scope,
    input: Tensor,
    weight: Tensor | None,
    eps: float,
    offset: float = 0.0,
    original: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """An RMSNorm over the last dimension that keeps its input alone; arguments as of `RMSNorm`."""
    y: Tensor = apply(RMSNorm, input, weight, eps, offset, original)

    def rebuild(kept: Kept) -> Tensor:
        x, scale = kept
        if original is not None:
            with torch.no_grad():
                return original(cast(Tensor, x))
        return kernels.rms_norm(cast(Tensor, x), _scale(scale, offset), eps=eps)[0]

    return note_origin(y, Origin("norm", (input, weight), rebuild), scope.notes)


def replace_rms_norm(
    scope: Scope,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    """Stand in for `rms_norm`."""
    if (
        not is_plain(input, weight)
        or not needs_grad(input, weight)
        or len(normalized_shape) != 1
        or input.shape[-1] != normalized_shape[0]
        or (weight is not None and weight.dtype != input.dtype)
        or torch.is_autocast_enabled(input.device.type)
    ):
        return NotImplemented
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return normalize_rms(scope, input, weight, eps)
