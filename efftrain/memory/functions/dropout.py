"""Dropout: one bit per element.

Plain torch keeps a mask as wide as its input on the CPU, and a byte per element on a GPU. The random
numbers are drawn as torch draws them, so a seed drops the same elements.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from efftrain.memory import kernels
from efftrain.memory.functions.typed import apply, once
from efftrain.memory.scope import Scope, is_plain


class Dropout(torch.autograd.Function):
    """Keeps which elements stayed."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float) -> Tensor:
        """Drop a share of `p`."""
        if input.device.type == "cpu":
            mask = torch.empty_like(input).bernoulli_(1 - p).div_(1 - p)
            y = input * mask
        else:
            y, mask = torch.native_dropout(input, p, True)
        ctx.layout = kernels.memory_format_of(mask)
        ctx.size, ctx.scale = input.shape, 1 / (1 - p)
        ctx.save_for_backward(kernels.pack_bits(mask.bool(), ctx.layout))
        return y

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradient of input."""
        (grad,) = grads
        (bits,) = ctx.saved_tensors
        return kernels.mask_grad(grad, bits, ctx.layout) * ctx.scale, None


def replace_dropout(
    scope: Scope, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Any:
    """Stand in for `dropout`."""
    if (
        not training
        or inplace
        or not 0 < p < 1
        or not is_plain(input)
        or not input.requires_grad
        or not input.numel()
    ):
        return NotImplemented
    return apply(Dropout, input, p)
