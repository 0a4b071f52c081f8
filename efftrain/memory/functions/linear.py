"""Linear layers with a frozen weight, under autocast.

In full precision plain torch keeps the weight alone. Under autocast it keeps a copy of the frozen
weight in low precision for each layer, from forward to backward; here backward casts it once more.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from efftrain.memory.functions.product import note_product
from efftrain.memory.functions.typed import apply, once
from efftrain.memory.scope import Scope, is_plain, needs_grad


class Linear(torch.autograd.Function):
    """y = x W^T + b. Keeps the weight, which is there anyway."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply; autocast is in force here too."""
        ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None)
        ctx.dtypes = (input.dtype, None if bias is None else bias.dtype)
        return F.linear(input, weight, bias)

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of input and bias."""
        (grad,) = grads
        (weight,) = ctx.saved_tensors
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            dx = grad.matmul(weight.to(grad.dtype)).to(ctx.dtypes[0])
        if ctx.needs_input_grad[2]:
            dbias = grad.flatten(0, -2).sum(0) if grad.dim() > 1 else grad
            dbias = dbias.to(ctx.dtypes[1])
        return dx, None, dbias


def replace_linear(scope: Scope, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Stand in for `linear`."""
    if (
        not is_plain(input, weight, bias)
        or weight.requires_grad
        or not needs_grad(input, bias)
        or weight.dim() != 2
    ):
        return NotImplemented
    if torch.is_autocast_enabled(input.device.type):
        y = apply(Linear, input, weight, bias)
    elif scope.recompute:
        y = F.linear(input, weight, bias)  # keeps the weight alone
    else:
        return NotImplemented
    return note_product(scope, y, input, weight, bias, F.linear)
