"""Norms over the last dimensions: LayerNorm's backward, RMSNorm forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from efftrain.memory.kernels.backend import fusible
from efftrain.memory.kernels.cpp import rms_norm as cpp

_aten = torch.ops.aten


@torch.no_grad()
def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    shape: tuple[int, ...],
    needs_dx: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of x, weight and bias of `torch.native_layer_norm`.

    Args:
        grad: Gradient of y, like x.
        x: [..., *shape].
        weight: [*shape]; None is 1.
        mean: [..., 1 per dimension of shape], as `torch.native_layer_norm` gave it.
        rstd: Like mean.
        shape: The dimensions that are normalized.
        needs_dx: Without it, None stands for the gradient of x.

    Returns:
        dx like x, dweight and dbias [*shape].
    """
    ones = torch.ones(shape, dtype=x.dtype, device=x.device) if weight is None else weight
    dx, dweight, dbias = _aten.native_layer_norm_backward(
        grad, x, list(shape), mean, rstd, ones, ones, [needs_dx, True, True]
    )
    return (dx if needs_dx else None), dweight, dbias


@fusible(cpp.rms_norm)
def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight, computed in fp32 where x is of lower precision.

    Args:
        x: [..., D].
        weight: [D], what x is multiplied with (so 1 + w where the model keeps w); None is 1.
        eps: Added to the mean square.

    Returns:
        y like x, and rstd [..., 1] in fp32 (fp64 for an fp64 x).

    Source: https://arxiv.org/abs/1910.07467
    """
    wide = _widen(x)
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = wide * rstd
    return (y if weight is None else y * weight).to(x.dtype), rstd


@fusible(cpp.rms_norm_backward)
def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, *, needs_dx: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Gradients of x and weight.

    Args:
        grad: Gradient of y, like x.
        x: [..., D].
        weight: [D], what x was multiplied with; None is 1.
        rstd: [..., 1], as `rms_norm` gave it.
        needs_dx: Without it, None stands for the gradient of x.

    Returns:
        dx like x, dweight [D] in weight's dtype (rstd's where there is none).
    """
    wide = _widen(grad)
    x_hat = _widen(x) * rstd
    product = wide * x_hat
    dweight = product.flatten(0, -2).sum(0)
    if weight is not None:
        dweight = dweight.to(weight.dtype)
    if not needs_dx:
        return None, dweight
    if weight is not None:
        wide, product = wide * weight, product * weight
    dx = rstd * (wide - x_hat * product.mean(-1, keepdim=True))
    return dx.to(x.dtype), dweight


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
