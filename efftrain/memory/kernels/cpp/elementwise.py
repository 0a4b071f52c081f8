"""The kernels of elementwise.cpp."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from efftrain.memory.kernels.activation import ACTIVATIONS, Activation
from efftrain.memory.kernels.cpp.build import library
from efftrain.memory.kernels.cpp.call import fits, options, pointers
from efftrain.memory.kernels.derivative_grid import LOW, STEP
from efftrain.memory.kernels.layout import memory_format_of


def gated(gate: Tensor, up: Tensor, *, act: Activation = "silu") -> Tensor | None:
    """As `kernels.gated`."""
    call = _kernels_for(act, gate, up)
    if call is None:
        return None
    y = torch.empty_like(gate)
    call.gated(*pointers(gate, up, y), ctypes.c_int64(y.numel()), *options(act))
    return y


def gated_backward(
    grad: Tensor, gate: Tensor, up: Tensor, *, act: Activation = "silu"
) -> tuple[Tensor, Tensor] | None:
    """As `kernels.gated_backward`."""
    call = _kernels_for(act, gate, up, grad)
    if call is None:
        return None
    dgate, dup = torch.empty_like(gate), torch.empty_like(up)
    count = ctypes.c_int64(gate.numel())
    call.gated_backward(*pointers(grad, gate, up, dgate, dup), count, *options(act))
    return dgate, dup


def gelu_8bit(x: Tensor, *, approximate: str = "none") -> tuple[Tensor, Tensor] | None:
    """As `kernels.gelu_8bit`."""
    call = _kernels_for("gelu", x)
    if call is None:
        return None
    y, codes = torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8)
    call.gelu_8bit(
        *pointers(x, y, codes),
        ctypes.c_int64(x.numel()),
        *_GRID,
        int(approximate == "tanh"),
        torch.get_num_threads(),
    )
    return y, codes


def gelu_8bit_backward(grad: Tensor, codes: Tensor) -> Tensor | None:
    """As `kernels.gelu_8bit_backward`."""
    layout = memory_format_of(grad)
    call = _kernels_for("gelu", grad) if codes.is_contiguous(memory_format=layout) else None
    if call is None:
        return None
    dx = torch.empty_like(grad)
    count = ctypes.c_int64(grad.numel())
    call.gelu_8bit_backward(*pointers(grad, codes, dx), count, *_GRID, torch.get_num_threads())
    return dx


_GRID = (ctypes.c_float(LOW), ctypes.c_float(STEP))


def _kernels_for(act: Activation, first: Tensor, *others: Tensor) -> Any:
    """The library, where it has the activation and all lie in the order of the first; else None."""
    layout = memory_format_of(first)
    alike = all(fits(t, layout) and t.shape == first.shape for t in (first, *others))
    return library() if alike and act in ACTIVATIONS else None
