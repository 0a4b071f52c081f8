"""The kernels of batch_norm.cpp."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from efftrain.memory.kernels.activation import Activation
from efftrain.memory.kernels.cpp.call import kernels_for, options, pointers, sizes


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float,
    eps: float,
    act: Activation = "none",
) -> tuple[Tensor, Tensor, Tensor] | None:
    """As `kernels.batch_norm_act`."""
    call = kernels_for(act, x, weight, bias, running_mean, running_var)
    if call is None or (not training and (running_mean is None or running_var is None)):
        return None
    y, mean, rstd = torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
    call.batch_norm_act(
        *pointers(x, y, weight, bias, running_mean, running_var, mean, rstd),
        *sizes(x),
        int(training),
        ctypes.c_double(momentum),
        ctypes.c_double(eps),
        *options(act),
    )
    return y, mean if training or running_mean is None else running_mean, rstd


def batch_norm_act_again(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    act: Activation = "none",
) -> Tensor | None:
    """As `kernels.batch_norm_act_again`."""
    call = kernels_for(act, x, weight, bias, mean, rstd)
    if call is None:
        return None
    y = torch.empty_like(x)
    call.batch_norm_act_again(*pointers(x, y, weight, bias, mean, rstd), *sizes(x), *options(act))
    return y


def batch_norm_act_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    training: bool,
    act: Activation = "none",
    needs_dx: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor] | None:
    """As `kernels.batch_norm_act_backward`."""
    grad = grad.contiguous() if x.is_contiguous() else grad
    call = kernels_for(act, x, grad, weight, bias, mean, rstd)
    if call is None:
        return None
    dx = torch.empty_like(x) if needs_dx else None
    dweight, dbias = torch.empty_like(mean), torch.empty_like(mean)
    call.batch_norm_act_backward(
        *pointers(grad, x, dx, weight, bias, mean, rstd, dweight, dbias),
        *sizes(x),
        int(training),
        *options(act),
    )
    return dx, dweight, dbias
