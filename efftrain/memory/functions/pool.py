"""Pooling.

Plain torch keeps the input and int64 indices of a max pooling, which is 4 bits of information per
output in a window of up to 16 places; and the input of an average pooling, of which backward reads
the shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.memory import kernels
from efftrain.memory.functions.typed import apply, once
from efftrain.memory.scope import Scope, is_plain

Size: TypeAlias = "int | Sequence[int]"


class MaxPool2d(torch.autograd.Function):
    """Keeps where in its window each maximum stood."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, window: tuple[Any, ...]) -> Tensor:
        """Pool; `window` is kernel, stride, padding, dilation and ceil mode."""
        y, codes = kernels.max_pool2d(input, *window)
        ctx.save_for_backward(codes)
        ctx.shape, ctx.window = tuple(input.shape), window
        return y

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradient of input."""
        (grad,) = grads
        (codes,) = ctx.saved_tensors
        return kernels.max_pool2d_backward(grad, codes, ctx.shape, *ctx.window), None


class AvgPool2d(torch.autograd.Function):
    """Keeps nothing."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, window: tuple[Any, ...]) -> Tensor:
        """Pool; `window` is what follows the input of `avg_pool2d`."""
        ctx.shape, ctx.window = input.shape, window
        ctx.layout = kernels.memory_format_of(input)
        return F.avg_pool2d(input, *window)

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradient of input."""
        (grad,) = grads
        like = torch.empty(
            ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout
        )
        return torch.ops.aten.avg_pool2d_backward(grad, like, *ctx.window), None


class AdaptiveAvgPool2d(torch.autograd.Function):
    """Keeps nothing."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, size: list[int]) -> Tensor:
        """Pool to `size`."""
        ctx.shape, ctx.layout = input.shape, kernels.memory_format_of(input)
        return F.adaptive_avg_pool2d(input, (size[0], size[1]))

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradient of input."""
        (grad,) = grads
        like = torch.empty(
            ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout
        )
        return torch.ops.aten._adaptive_avg_pool2d_backward(grad, like), None


def _pair(size: Size) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return int(size[0]), int(size[-1])


def replace_max_pool2d(
    scope: Scope,
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Stand in for `max_pool2d`."""
    kernel = _pair(kernel_size)
    if (
        return_indices
        or not is_plain(input)
        or not input.requires_grad
        or input.dim() != 4
        or kernel[0] * kernel[1] > 256
    ):
        return NotImplemented
    step = _pair(stride) if stride else kernel
    window = (kernel, step, _pair(padding), _pair(dilation), ceil_mode)
    return apply(MaxPool2d, input, window)


def replace_avg_pool2d(
    scope: Scope,
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """Stand in for `avg_pool2d`."""
    if not is_plain(input) or not input.requires_grad or input.dim() != 4:
        return NotImplemented
    kernel = _pair(kernel_size)
    step = _pair(stride) if stride else kernel
    window = (kernel, step, _pair(padding), ceil_mode, count_include_pad, divisor_override)
    return apply(AvgPool2d, input, window)


def replace_adaptive_avg_pool2d(scope: Scope, input: Tensor, output_size: Any) -> Any:
    """Stand in for `adaptive_avg_pool2d`; to one value torch takes the mean, which keeps nothing."""
    if not is_plain(input) or not input.requires_grad or input.dim() != 4:
        return NotImplemented
    given = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    size = [
        have if want is None else int(want)
        for have, want in zip(input.shape[2:], cast("tuple[int | None, ...]", given), strict=True)
    ]
    if size == [1, 1]:
        return NotImplemented
    return apply(AdaptiveAvgPool2d, input, size)
