"""Products of two tensors that both have a gradient: SwiGLU, GeGLU, squeeze-and-excitation.

Plain torch keeps both factors. A factor that can be made again from what is kept anyway is not kept:
of act(gate) * up stay gate and up; of act(norm(x)) * scale stay x, which the norm keeps, and scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from efftrain.memory import kernels
from efftrain.memory.functions.typed import apply, once
from efftrain.memory.origin import Gate, Origin, Use, origin_of
from efftrain.memory.scope import Scope, is_plain, is_watched


class Gated(torch.autograd.Function):
    """act(gate) * up. Keeps gate and up (https://arxiv.org/abs/2002.05202)."""

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, activated: Tensor, details: Gate, origin: Origin | None
    ) -> Tensor:
        """Multiply.

        Args:
            ctx: Of autograd.
            gate: Input of the activation.
            up: The other factor.
            activated: act(gate), without gradient.
            details: The activation, and the origin of its input.
            origin: Of the other factor.
        """
        ctx.gate, ctx.up = Use(gate, details.origin), Use(up, origin)
        ctx.save_for_backward(*ctx.gate.take(), *ctx.up.take())
        ctx.act = details.act
        return activated * up

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of gate and up."""
        (grad,) = grads
        saved = ctx.saved_tensors
        gate, up = ctx.gate.get(saved), ctx.up.get(saved[ctx.gate.count :])
        return *kernels.gated_backward(grad, gate, up, act=ctx.act), None, None, None


class Product(torch.autograd.Function):
    """left * right, each kept itself or as what it can be made from."""

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, origins: tuple[Origin | None, Origin | None]
    ) -> Tensor:
        """Multiply, with broadcasting."""
        ctx.left, ctx.right = Use(left, origins[0]), Use(right, origins[1])
        ctx.save_for_backward(*ctx.left.take(), *ctx.right.take())
        ctx.sizes = (left.shape, right.shape)
        return left * right

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of left and right."""
        (grad,) = grads
        saved = ctx.saved_tensors
        left, right = ctx.left.get(saved), ctx.right.get(saved[ctx.left.count :])
        dleft = (grad * right).sum_to_size(ctx.sizes[0])
        dright = (grad * left).sum_to_size(ctx.sizes[1])
        return dleft, dright, None


def replace_mul(scope: Scope, input: Any, other: Any, *, out: Tensor | None = None) -> Any:
    """Stand in for `a * b` and `torch.mul`."""
    if out is not None or not isinstance(input, Tensor) or not isinstance(other, Tensor):
        return NotImplemented
    if (
        not (input.requires_grad and other.requires_grad)
        or not is_plain(input, other)
        or input.dtype != other.dtype
        or input is other
    ):
        return NotImplemented
    origins = (origin_of(input), origin_of(other))
    if origins == (None, None):
        return NotImplemented
    for origin, other_origin, activated, up in (
        (origins[0], origins[1], input, other),
        (origins[1], origins[0], other, input),
    ):
        if origin is None or not isinstance(origin.details, Gate) or is_watched(activated):
            continue
        if origin.details.input.shape == up.shape:
            details = origin.details
            return apply(Gated, details.input, up, activated.detach(), details, other_origin)
    return apply(Product, input, other, origins)
