"""Convolutions with a frozen weight: the input is not kept.

Plain torch keeps input and weight of every convolution. The input is read only for the weight's
gradient; the gradients of input and bias need the weight and nothing else (pytorch#133566).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.memory.functions.product import note_product
from efftrain.memory.functions.typed import apply, once
from efftrain.memory.scope import Scope, is_plain, needs_grad

_POSITIONS = 32

Steps: TypeAlias = "int | Sequence[int]"
"""One number for all spatial dimensions, or one each."""


class Conv(torch.autograd.Function):
    """A convolution, plain or transposed. Keeps the weight, which is there anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        steps: tuple[list[int], list[int], list[int], bool, list[int], int],
    ) -> Tensor:
        """Convolve.

        Args:
            ctx: Of autograd.
            input: [N, C, ...].
            weight: As of `torch.convolution`; frozen.
            bias: [C of the output] or None.
            steps: Stride, padding, dilation, transposed, output padding, groups.
        """
        ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None)
        ctx.steps, ctx.shape, ctx.dtype = steps, input.shape, input.dtype
        input, weight, bias = _lowered(input, weight, bias)
        return torch.convolution(input, weight, bias, *steps)

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of input and bias."""
        (grad,) = grads
        (weight,) = ctx.saved_tensors
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            # under autocast the output is of lower precision, and so was the weight
            dx = _input_grad(grad, weight.to(grad.dtype), ctx.shape, *ctx.steps)
            dx = dx.to(ctx.dtype)
        if ctx.needs_input_grad[2]:
            dbias = grad.sum([0, *range(2, grad.dim())])  # autograd casts it to the bias's dtype
        return dx, None, dbias, None


def _lowered(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """In the precision that autocast has convolutions in; it does not know `torch.convolution`."""
    device = input.device.type
    if not torch.is_autocast_enabled(device) or input.dtype == torch.float64:
        return input, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _input_grad(
    grad: Tensor,
    weight: Tensor,
    shape: torch.Size,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """A convolution's gradient is the transposed convolution, and the other way round.

    So no tensor of the input's size has to stand in for the input, as `convolution_backward` asks.
    """
    if transposed:
        if all(extra < step for extra, step in zip(output_padding, stride, strict=True)):
            none = [0] * len(stride)
            return torch.convolution(
                grad, weight, None, stride, padding, dilation, False, none, groups
            )
    elif _is_product(grad, weight, stride, padding, groups):
        return torch.matmul(weight.flatten(1).t(), grad.flatten(2)).view(shape)
    else:
        extra = [
            size - ((out - 1) * step - 2 * pad + gap * (kernel - 1) + 1)
            for size, out, step, pad, gap, kernel in zip(
                shape[2:], grad.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
            )
        ]
        return torch.convolution(grad, weight, None, stride, padding, dilation, True, extra, groups)
    dx: Tensor = torch.ops.aten.convolution_backward(
        grad,
        grad.new_empty(shape),
        weight,
        None,
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
        [True, False, False],
    )[0]
    return dx


def _is_product(
    grad: Tensor, weight: Tensor, stride: list[int], padding: list[int], groups: int
) -> bool:
    """Whether a convolution is a matrix product that torch computes with less around it.

    A 1x1 convolution on a CPU with one thread; to the bit the same, and up to 1.4 times as fast. On a
    few positions (2 x 2) it is slower.
    """
    return (
        grad.device.type == "cpu"
        and groups == 1
        and grad.is_contiguous()
        and weight[0, 0].numel() == 1
        and all(step == 1 for step in stride)
        and not any(padding)
        and math.prod(grad.shape[2:]) >= _POSITIONS
    )


def _each(steps: Steps, dimensions: int) -> list[int]:
    if isinstance(steps, int):
        return [steps] * dimensions
    return list(steps) * (dimensions if len(steps) == 1 else 1)


def _replaceable(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the weight is frozen, something else is not, and the batch has its dimension."""
    return (
        is_plain(input, weight, bias)
        and not weight.requires_grad
        and needs_grad(input, bias)
        and input.dim() == weight.dim()
    )


def _convolve(
    scope: Scope,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    steps: tuple[list[int], list[int], list[int], bool, list[int], int],
    depthwise: bool = False,
) -> Tensor:
    y: Tensor = apply(Conv, input, weight, bias, steps)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(*_lowered(x, weight, bias), *steps)

    return note_product(scope, y, input, weight, bias, run, depthwise=depthwise)


def replace_conv(
    scope: Scope,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Steps = 1,
    padding: Steps | str = 0,
    dilation: Steps = 1,
    groups: int = 1,
) -> Any:
    """Stand in for `conv1d`, `conv2d` and `conv3d`."""
    if not _replaceable(input, weight, bias):
        return NotImplemented
    dimensions = weight.dim() - 2
    stride, dilation = _each(stride, dimensions), _each(dilation, dimensions)
    if isinstance(padding, str):
        if padding == "same":
            if any(step != 1 for step in stride):
                return NotImplemented  # torch says why not
            wide = [gap * (k - 1) for gap, k in zip(dilation, weight.shape[2:], strict=True)]
            if any(each % 2 for each in wide):  # one more on the right, as torch does it
                ends = [side for each in reversed(wide) for side in (0, each % 2)]
                input = F.pad(input, ends)
            padding = [each // 2 for each in wide]
        elif padding == "valid":
            padding = 0
        else:
            return NotImplemented
    none = [0] * dimensions
    steps = (stride, _each(padding, dimensions), dilation, False, none, groups)
    depthwise = groups == weight.shape[0] == input.shape[1]
    return _convolve(scope, input, weight, bias, steps, depthwise)


def replace_conv_transpose(
    scope: Scope,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Steps = 1,
    padding: Steps = 0,
    output_padding: Steps = 0,
    groups: int = 1,
    dilation: Steps = 1,
) -> Any:
    """Stand in for `conv_transpose1d`, `conv_transpose2d` and `conv_transpose3d`."""
    if not _replaceable(input, weight, bias):
        return NotImplemented
    dimensions = weight.dim() - 2
    steps = (
        _each(stride, dimensions),
        _each(padding, dimensions),
        _each(dilation, dimensions),
        True,
        _each(output_padding, dimensions),
        groups,
    )
    return _convolve(scope, input, weight, bias, steps)
