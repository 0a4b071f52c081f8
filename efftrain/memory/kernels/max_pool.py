"""Max pooling that keeps where in its window the maximum stood: 4 bits, not an int64 index.

A window of up to 16 places (4x4) fits: two codes share a byte. A larger one, up to 256, takes a byte.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.errors import EfftrainError
from efftrain.memory.kernels.backend import fusible
from efftrain.memory.kernels.cpp import max_pool as cpp
from efftrain.memory.kernels.layout import memory_format_of

Pair: TypeAlias = tuple[int, int]

_aten = torch.ops.aten


@fusible(cpp.max_pool2d, compiles=False)
def max_pool2d(
    x: Tensor,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Pool, and say where each maximum stood.

    Args:
        x: [N, C, H, W] or [C, H, W].
        kernel: Height and width of the window.
        stride: Its steps.
        padding: Around x.
        dilation: Between the window's places.
        ceil_mode: Whether a window may hang over the edge.

    Returns:
        y, as torch computes it, and uint8 codes for `max_pool2d_backward`.

    Raises:
        EfftrainError: The window has more than 256 places.
    """
    if kernel[0] * kernel[1] > 256:
        raise EfftrainError(f"a window of {kernel} has over 256 places; leave this pool to torch")
    y, index = F.max_pool2d(
        x, kernel, stride, padding, dilation, ceil_mode=ceil_mode, return_indices=True
    )
    rows, columns = _origins(y, stride, padding)
    width = x.shape[-1]
    row = (index // width - rows) // dilation[0]
    column = (index % width - columns) // dilation[1]
    codes = (row * kernel[1] + column).to(torch.uint8).reshape(-1)
    return y, (_two_in_one(codes) if _fits(kernel) else codes)


@fusible(cpp.max_pool2d_backward, compiles=False)
def max_pool2d_backward(
    grad: Tensor,
    codes: Tensor,
    shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    """Gradient of x.

    Args:
        grad: Gradient of y.
        codes: As `max_pool2d` gave them.
        shape: Of x.
        kernel: As for `max_pool2d`, and so the others.
        stride: Its steps.
        padding: Around x.
        dilation: Between the window's places.
        ceil_mode: Whether a window may hang over the edge.
    """
    if _fits(kernel):
        codes = torch.stack((codes & 15, codes >> 4), 1).view(-1)[: grad.numel()]
    code = codes.view(grad.shape).long()
    rows, columns = _origins(grad, stride, padding)
    row = code // kernel[1] * dilation[0] + rows
    column = code % kernel[1] * dilation[1] + columns
    index = row * shape[-1] + column
    layout = memory_format_of(grad)
    if layout == torch.contiguous_format:
        x = grad.new_empty(1).expand(shape)  # only its shape is read: no bytes for it
    else:
        x = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
    return _aten.max_pool2d_with_indices_backward(
        grad.contiguous(memory_format=layout),
        x,
        list(kernel),
        list(stride),
        list(padding),
        list(dilation),
        ceil_mode,
        index.contiguous(memory_format=layout),
    )


def _fits(kernel: Pair) -> bool:
    return kernel[0] * kernel[1] <= 16


def _two_in_one(codes: Tensor) -> Tensor:
    pairs = F.pad(codes, (0, codes.numel() % 2)).view(-1, 2)
    return pairs[:, 0] | pairs[:, 1] << 4


def _origins(y: Tensor, stride: Pair, padding: Pair) -> tuple[Tensor, Tensor]:
    """The first row and column of each window, [H, 1] and [W]; negative in the padding."""
    height, width = y.shape[-2:]
    rows = torch.arange(height, device=y.device).view(-1, 1) * stride[0] - padding[0]
    columns = torch.arange(width, device=y.device) * stride[1] - padding[1]
    return rows, columns
