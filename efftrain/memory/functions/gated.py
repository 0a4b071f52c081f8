"""Products of two tensors that both have a gradient: SwiGLU, GeGLU, squeeze-and-excitation.

Plain torch keeps both factors. A factor that can be made again from what is kept anyway is not kept:
of act(gate) * up stay gate and up; of act(norm(x)) * scale stay x, which the norm keeps, and scale.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from efftrain.memory import kernels
from efftrain.memory.functions.typed import apply, once
from efftrain.memory.origin import Origin, origin_of
from efftrain.memory.scope import Scope, is_plain, is_watched


class Gated(torch.autograd.Function):
    """act(gate) * up. Keeps gate and up (https://arxiv.org/abs/2002.05202)."""

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, activated: Tensor, act: kernels.Activation
    ) -> Tensor:
        """Multiply; `activated` is act(gate), without gradient."""
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return activated * up

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of gate and up."""
        (grad,) = grads
        gate, up = ctx.saved_tensors
        return *kernels.gated_backward(grad, gate, up, act=ctx.act), None, None


class Product(torch.autograd.Function):
    """left * right, each kept itself or as what it can be made from."""

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, origins: tuple[Origin | None, Origin | None]
    ) -> Tensor:
        """Multiply, with broadcasting."""
        kept = [
            (one,) if origin is None else origin.saved()
            for one, origin in zip((left, right), origins, strict=True)
        ]
        ctx.save_for_backward(*kept[0], *kept[1])
        ctx.rebuilds = [None if origin is None else origin.rebuild for origin in origins]
        ctx.split, ctx.sizes = len(kept[0]), (left.shape, right.shape)
        return left * right

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of left and right."""
        (grad,) = grads
        saved = ctx.saved_tensors
        left, right = (
            kept[0] if rebuild is None else rebuild(kept)
            for kept, rebuild in zip(
                (saved[: ctx.split], saved[ctx.split :]), ctx.rebuilds, strict=True
            )
        )
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
    for origin, activated, up in ((origins[0], input, other), (origins[1], other, input)):
        if origin is not None and origin.details is not None and origin.kind == "activation":
            gate = cast(Tensor, origin.inputs[0])
            if gate.shape == up.shape and origin_of(up) is None and not is_watched(activated):
                return apply(Gated, gate, up, activated.detach(), origin.details)
    return apply(Product, input, other, origins)
