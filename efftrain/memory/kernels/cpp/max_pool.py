"""The kernels of max_pool.cpp."""

from __future__ import annotations

import ctypes
from typing import Any, TypeAlias

import torch
from torch import Tensor

from efftrain.memory.kernels.cpp.call import kernels_for, pointers

Pair: TypeAlias = tuple[int, int]


def max_pool2d(
    x: Tensor,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """As `kernels.max_pool2d`."""
    places = kernel[0] * kernel[1]
    # with gaps between its places, a window may lie in the padding as a whole
    may_be_empty = max(dilation) > 1 and max(padding) > 0
    taken = places <= 256 and x.dim() in (3, 4) and not may_be_empty
    call = kernels_for("none", x) if taken else None
    if call is None:
        return None
    # the shape, and whether torch takes these arguments at all
    steps = (list(kernel), list(stride), list(padding), list(dilation), ceil_mode)
    shape = torch.max_pool2d(torch.empty_like(x, device="meta"), *steps).shape
    y, codes = x.new_empty(shape), torch.empty(shape.numel(), dtype=torch.uint8)
    planes, sizes = _sizes(x.shape, y, (kernel, stride, padding, dilation))
    call.max_pool2d(*pointers(x, y, codes), planes, sizes, torch.get_num_threads())
    if places > 16:
        return y, codes
    packed = torch.empty((codes.numel() + 1) // 2, dtype=torch.uint8)
    call.pack_nibbles(*pointers(codes, packed), ctypes.c_int64(codes.numel()))
    return y, packed


def max_pool2d_backward(
    grad: Tensor,
    codes: Tensor,
    shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> Tensor | None:
    """As `kernels.max_pool2d_backward`."""
    call = kernels_for("none", grad)
    if call is None:
        return None
    dx = grad.new_zeros(shape)
    planes, sizes = _sizes(dx.shape, grad, (kernel, stride, padding, dilation))
    packed = int(kernel[0] * kernel[1] <= 16)
    call.max_pool2d_backward(
        *pointers(grad, codes, dx), planes, sizes, packed, torch.get_num_threads()
    )
    return dx


def _sizes(
    shape: torch.Size, y: Tensor, pairs: tuple[Pair, ...]
) -> tuple[ctypes.c_int64, ctypes.Array[Any]]:
    numbers = (*shape[-2:], *y.shape[-2:], *(number for pair in pairs for number in pair))
    return ctypes.c_int64(shape[:-2].numel()), (ctypes.c_int64 * len(numbers))(*numbers)
