"""The kernels of batch_norm_8bit.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from efftrain.memory.kernels.activation import Activation
from efftrain.memory.kernels.cpp.call import kernels_for, options, pointers, sizes

ACTS = ("none", "relu", "relu6")
"""What the kernels are compiled for."""


def batch_norm_act_8bit(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    eps: float,
    act: Activation = "none",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None:
    """As `kernels.batch_norm_act_8bit`."""
    call = kernels_for(act, x, weight, bias, running_mean, running_var)
    if call is None or act not in ACTS:
        return None
    y, codes = torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8)
    low, step = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
    rstd = torch.rsqrt(running_var + eps)
    call.batch_norm_act_8bit(
        *pointers(x, y, codes, low, step, weight, bias, running_mean, rstd),
        *sizes(x),
        *options(act),
    )
    return y, codes, low, step, rstd


def batch_norm_act_8bit_backward(
    grad: Tensor,
    codes: Tensor,
    low: Tensor,
    step: Tensor,
    weight: Tensor | None,
    running_mean: Tensor,
    rstd: Tensor,
    *,
    act: Activation = "none",
    needs_dx: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor] | None:
    """As `kernels.batch_norm_act_8bit_backward`."""
    if not codes.is_contiguous():
        return None
    grad = grad.contiguous()
    call = kernels_for(act, grad, low, step, weight, running_mean, rstd)
    if call is None or act not in ACTS:
        return None
    dx = torch.empty_like(grad) if needs_dx else None
    dweight, dbias = torch.empty_like(rstd), torch.empty_like(rstd)
    call.batch_norm_act_8bit_backward(
        *pointers(grad, codes, low, step, dx, weight, running_mean, rstd, dweight, dbias),
        *sizes(grad),
        *options(act),
    )
    return dx, dweight, dbias
