"""The kernels of bits.cpp."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from efftrain.memory.kernels.cpp.build import library
from efftrain.memory.kernels.cpp.call import fits, pointers
from efftrain.memory.kernels.layout import memory_format_of


def add_relu(a: Tensor, b: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
    """As `kernels.add_relu`."""
    layout = memory_format_of(a)
    if b is not None:
        if b.shape != a.shape:
            return None
        b = b.contiguous(memory_format=layout)
    call = library() if fits(a, layout) and fits(b, layout) else None
    if call is None:
        return None
    y, bits = torch.empty_like(a), torch.empty((a.numel() + 7) // 8, dtype=torch.uint8)
    count = ctypes.c_int64(a.numel())
    call.add_relu(*pointers(a, b, y, bits), count, torch.get_num_threads())
    return y, bits


def mask_grad(
    grad: Tensor, bits: Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor | None:
    """As `kernels.mask_grad`."""
    grad = grad.contiguous(memory_format=memory_format)
    call = library() if fits(grad, memory_format) else None
    if call is None:
        return None
    dx = torch.empty_like(grad)
    count = ctypes.c_int64(grad.numel())
    call.mask_grad(*pointers(grad, bits, dx), count, torch.get_num_threads())
    return dx
