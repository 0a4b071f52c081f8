"""Activation functions.

Plain torch keeps the output of ReLU, Sigmoid and Tanh, the input of all others, and a copy of the
input where one that needs it writes over it. Of these stay:

- nothing after a norm: the input is made again from what the norm keeps;
- one bit per element for ReLU, ReLU6, Hardtanh and LeakyReLU elsewhere (behind a residual addition,
  say), unless a trainable layer beside it keeps the output anyway;
- what torch keeps, for the others elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.memory import kernels
from efftrain.memory.functions.batch_norm import BatchNormActivation, Edges
from efftrain.memory.functions.typed import apply, once
from efftrain.memory.origin import Gate, Kept, Origin, Use, note_origin, origin_of
from efftrain.memory.scope import Scope, is_plain, is_watched

_aten = torch.ops.aten


@dataclass(frozen=True)
class Shape:
    """One activation function with its numbers.

    Attributes:
        forward: Of the input.
        over: The same, written over the input.
        backward: From the output's gradient and the input to the input's gradient.
        kernel: Its name among the fused kernels; None where it has none.
        slopes: Of one with two slopes: the derivative where the mask is unset and where it is set.
        mask: Of one with two slopes: where it has the second, from the output.
    """

    forward: Callable[[Tensor], Tensor]
    over: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    kernel: kernels.Activation | None = None
    slopes: tuple[float, float] = (0.0, 1.0)
    mask: Callable[[Tensor], Tensor] | None = None


class Recomputed(torch.autograd.Function):
    """An activation that keeps what its input can be made from, in memory that is kept anyway."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, shape: Shape, inplace: bool, origin: Origin) -> Tensor:
        """Activate `input`; write over it where `inplace`."""
        ctx.use = Use(None, origin)
        ctx.save_for_backward(*ctx.use.take())
        ctx.shape = shape
        return _activate(ctx, input, shape, inplace)

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradient of input."""
        (grad,) = grads
        return ctx.shape.backward(grad, ctx.use.get(ctx.saved_tensors)), None, None, None


class Masked(torch.autograd.Function):
    """An activation with two slopes. Keeps one bit per element: which of them."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, shape: Shape, inplace: bool) -> Tensor:
        """Activate `input`; write over it where `inplace`."""
        ctx.layout = kernels.memory_format_of(input)
        ctx.slopes, ctx.size = shape.slopes, input.shape
        if shape.kernel == "relu":
            y, bits = kernels.add_relu(input)
            if inplace:
                ctx.mark_dirty(input)
                y = input.copy_(y)
        else:
            y = _activate(ctx, input, shape, inplace)
            assert shape.mask is not None, "only those with a mask come here"
            bits = cast(Tensor, kernels.pack_bits(shape.mask(y), ctx.layout))
        ctx.save_for_backward(bits)
        return y

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradient of input."""
        (grad,) = grads
        (bits,) = ctx.saved_tensors
        low, high = ctx.slopes
        if low == 0 and high == 1:
            return kernels.mask_grad(grad, bits, ctx.layout), None, None
        mask = kernels.unpack_bits(bits, ctx.size, ctx.layout)
        return torch.where(mask, grad * high, grad * low), None, None


def _activate(ctx: Any, input: Tensor, shape: Shape, inplace: bool) -> Tensor:
    if not inplace:
        return shape.forward(input)
    ctx.mark_dirty(input)
    return shape.over(input)


def replace_activation(scope: Scope, input: Tensor, shape: Shape, inplace: bool) -> Any:
    """Stand in for any activation function.

    Args:
        scope: Of the call.
        input: Of the activation.
        shape: Which.
        inplace: Whether torch would write over `input`.
    """
    if not is_plain(input) or not input.requires_grad:
        return NotImplemented
    if inplace and (input.is_leaf or input._is_view()):  # pyright: ignore[reportPrivateUsage]
        return NotImplemented
    origin = origin_of(input)
    if origin is None:
        return _replace_alone(scope, input, shape, inplace)
    if origin.kind == "batch_norm" and shape.kernel is not None and not is_watched(input):
        if inplace:
            input.detach_()  # what used it before keeps its own way to the norm
        norm: Edges = origin.details
        y = apply(
            BatchNormActivation,
            norm.input,
            norm.weight,
            norm.bias,
            norm,
            input if inplace else input.detach(),
            shape.over if inplace else shape.forward,
            shape.kernel,
            inplace,
        )
    else:
        y = apply(Recomputed, input, shape, inplace, origin)
    again = origin.rebuild  # the note holds tensors, and is let go

    def rebuild(kept: Kept) -> Tensor:
        return shape.forward(again(kept))

    gate = None
    if origin.kind == "product" and shape.kernel is not None and not inplace:
        gate = Gate(input, shape.kernel, origin)
    note = Origin("activation", origin.inputs, rebuild, gate, origin.memos)
    return note_origin(y, note, scope.notes)


def _replace_alone(scope: Scope, input: Tensor, shape: Shape, inplace: bool) -> Any:
    """Not after a norm."""
    if shape.mask is not None:
        return apply(Masked, input, shape, inplace) if scope.masks else NotImplemented
    if inplace or shape.kernel is None:
        return NotImplemented
    # torch keeps the input; so what multiplies the output, as in SwiGLU, need not keep that
    y = shape.forward(input)

    def rebuild(kept: Kept) -> Tensor:
        return shape.forward(cast(Tensor, kept[0]))

    gate = Gate(input, shape.kernel, None)
    return note_origin(y, Origin("activation", (input,), rebuild, gate), scope.notes)


def relu() -> Shape:
    """max(x, 0)."""
    return Shape(
        torch.relu,
        torch.relu_,
        lambda grad, x: _aten.threshold_backward(grad, x, 0),
        kernel="relu",
        mask=lambda y: ~(y <= 0),
    )


def hardtanh(low: float, high: float) -> Shape:
    """min(max(x, low), high); ReLU6 is one."""
    return Shape(
        lambda x: F.hardtanh(x, low, high),
        lambda x: F.hardtanh_(x, low, high),
        lambda grad, x: _aten.hardtanh_backward(grad, x, low, high),
        kernel="relu6" if (low, high) == (0, 6) else None,
        mask=lambda y: ~((y <= low) | (y >= high)),
    )


def leaky_relu(slope: float) -> Shape:
    """X where it is above 0, else slope * x."""
    return Shape(
        lambda x: F.leaky_relu(x, slope),
        lambda x: F.leaky_relu_(x, slope),
        lambda grad, x: _aten.leaky_relu_backward(grad, x, slope, False),
        slopes=(slope, 1.0),
        mask=(lambda y: y > 0) if slope >= 0 else None,
    )


def silu() -> Shape:
    """X * sigmoid(x)."""
    return Shape(F.silu, _aten.silu_, _aten.silu_backward, kernel="silu")


def gelu(approximate: str) -> Shape:
    """X * Phi(x)."""
    return Shape(
        lambda x: F.gelu(x, approximate=approximate),
        lambda x: _aten.gelu_(x, approximate=approximate),
        lambda grad, x: _aten.gelu_backward(grad, x, approximate=approximate),
        kernel="gelu" if approximate == "none" else "gelu_tanh",
    )


def hardswish() -> Shape:
    """X * min(max(x + 3, 0), 6) / 6."""
    return Shape(F.hardswish, _aten.hardswish_, _aten.hardswish_backward, kernel="hardswish")


def hardsigmoid() -> Shape:
    """min(max(x + 3, 0), 6) / 6."""
    return Shape(
        F.hardsigmoid,
        _aten.hardsigmoid_,
        _aten.hardsigmoid_backward,
        slopes=(0.0, 1 / 6),
        mask=lambda y: (y > 0) & (y < 1),
    )


def mish() -> Shape:
    """X * tanh(softplus(x))."""
    return Shape(F.mish, _aten.mish_, _aten.mish_backward)


def elu(alpha: float) -> Shape:
    """X where it is above 0, else alpha * (exp(x) - 1)."""
    return Shape(
        lambda x: F.elu(x, alpha),
        lambda x: _aten.elu_(x, alpha),
        lambda grad, x: _aten.elu_backward(grad, alpha, 1, 1, False, x),
    )


def sigmoid() -> Shape:
    """1 / (1 + exp(-x))."""
    return Shape(
        torch.sigmoid,
        torch.sigmoid_,
        lambda grad, x: _aten.sigmoid_backward(grad, torch.sigmoid(x)),
    )


def tanh() -> Shape:
    """(exp(x) - exp(-x)) / (exp(x) + exp(-x))."""
    return Shape(torch.tanh, torch.tanh_, lambda grad, x: _aten.tanh_backward(grad, torch.tanh(x)))
