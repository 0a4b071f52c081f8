"""The kernels of rms_norm.cpp."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from efftrain.memory.kernels.cpp.call import kernels_for, pointers


def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float) -> tuple[Tensor, Tensor] | None:
    """As `kernels.rms_norm`."""
    call = kernels_for("none", x, weight)
    if call is None:
        return None
    y, rstd = torch.empty_like(x), x.new_empty((*x.shape[:-1], 1))
    call.rms_norm(
        *pointers(x, weight, y, rstd), *_rows(x), ctypes.c_double(eps), torch.get_num_threads()
    )
    return y, rstd


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, *, needs_dx: bool = True
) -> tuple[Tensor | None, Tensor] | None:
    """As `kernels.rms_norm_backward`."""
    grad = grad.contiguous()
    call = kernels_for("none", x, grad, weight, rstd)
    if call is None:
        return None
    threads = torch.get_num_threads()
    dx = torch.empty_like(x) if needs_dx else None
    partial = x.new_zeros(threads, x.shape[-1])
    call.rms_norm_backward(*pointers(grad, x, weight, rstd, dx, partial), *_rows(x), threads)
    return dx, partial.sum(0)


def _rows(x: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    return ctypes.c_int64(x.numel() // x.shape[-1]), ctypes.c_int64(x.shape[-1])
