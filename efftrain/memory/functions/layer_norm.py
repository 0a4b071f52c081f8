"""LayerNorm, GroupNorm: what torch keeps is the least, the input and the statistics.

Two things are gained. Their output carries a note of where it came from, for an activation that
follows. And under autocast, which computes a LayerNorm in float32, plain torch keeps the input's
copy in float32: here the input in low precision is kept, and cast once more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from efftrain.memory import kernels
from efftrain.memory.functions.typed import apply, once
from efftrain.memory.origin import Kept, Origin, note_origin
from efftrain.memory.scope import Scope, is_plain, needs_grad


class LayerNorm(torch.autograd.Function):
    """In float32, of an input of lower precision. Keeps the input as it is, and the statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        shape: list[int],
        eps: float,
    ) -> Tensor:
        """Normalize the last dimensions."""
        y, mean, rstd = torch.native_layer_norm(
            input.float(), shape, _float(weight), _float(bias), eps
        )
        ctx.save_for_backward(input, weight, mean, rstd)
        ctx.shape = tuple(shape)
        ctx.dtypes = [None if one is None else one.dtype for one in (input, weight, bias)]
        return y

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of input, weight and bias."""
        (grad,) = grads
        x, weight, mean, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad
        found = kernels.layer_norm_backward(
            grad, x.float(), _float(weight), mean, rstd, shape=ctx.shape, needs_dx=needs[0]
        )
        asked = [
            one.to(dtype) if need and one is not None else None
            for one, need, dtype in zip(found, needs, ctx.dtypes, strict=False)
        ]
        return *asked, None, None


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def replace_layer_norm(
    scope: Scope,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Stand in for `layer_norm`."""
    if not is_plain(input, weight, bias) or not needs_grad(input, weight):
        return NotImplemented
    shape = list(normalized_shape)
    if torch.is_autocast_enabled(input.device.type):
        if input.dtype not in (torch.bfloat16, torch.float16):
            return NotImplemented
        return apply(LayerNorm, input, weight, bias, shape, eps)
    y = torch.native_layer_norm(input, shape, weight, bias, eps)[0]

    def rebuild(kept: Kept) -> Tensor:
        x, scale, shift = kept
        return torch.native_layer_norm(cast(Tensor, x), shape, scale, shift, eps)[0]

    return note_origin(y, Origin("norm", (input, weight, bias), rebuild), scope.notes)


def replace_group_norm(
    scope: Scope,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Stand in for `group_norm`."""
    if (
        not is_plain(input, weight, bias)
        or not needs_grad(input, weight)
        or input.dim() < 3
        or torch.is_autocast_enabled(input.device.type)
        or input.shape[1] % num_groups
        or input.numel() <= input.shape[0] * num_groups  # one value per group: torch refuses
    ):
        return NotImplemented
    sizes = (input.shape[0], input.shape[1], math.prod(input.shape[2:]))

    def normalize(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        layout = kernels.memory_format_of(x)
        x = x.contiguous(memory_format=layout)
        return torch.native_group_norm(x, scale, shift, *sizes, num_groups, eps)[0]

    def rebuild(kept: Kept) -> Tensor:
        x, scale, shift = kept
        return normalize(cast(Tensor, x), scale, shift)

    y = normalize(input, weight, bias)
    return note_origin(y, Origin("norm", (input, weight, bias), rebuild), scope.notes)
