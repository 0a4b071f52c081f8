"""BatchNorm, and BatchNorm with the activation after it.

With the statistics of the batch, dx reads x; with running statistics, dx = dy * weight * rstd does
not, and only the weight's gradient does. So x is kept where one of these asks for it, and nothing
otherwise. Where x is kept, the activation that follows makes its own input again from it: plain
torch keeps that, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from efftrain.memory import kernels
from efftrain.memory.functions.typed import apply, once
from efftrain.memory.origin import (
    Kept,
    Origin,
    Reader,
    Rebuild,
    Use,
    note_origin,
    origin_of,
)
from efftrain.memory.scope import Scope, is_plain, needs_grad


@dataclass(frozen=True)
class NormCall:
    """How a batch norm was called.

    Attributes:
        training: Whether the statistics are those of the batch.
        eps: Added to the variance.
    """

    training: bool
    eps: float

    def statistics(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and 1 / standard deviation from what is kept of them.

        In training these two; else the buffers of mean and variance, which are there anyway.
        """
        return (first, second) if self.training else (first, torch.rsqrt(second + self.eps))


class BatchNorm(torch.autograd.Function):
    """Keeps x where a gradient reads it, and the statistics of the batch, [C]."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        call: NormCall,
        origin: Origin | None,
        statistics: list[Tensor],
    ) -> Tensor:
        """Normalize.

        Args:
            ctx: Of autograd.
            input: [N, C, ...].
            weight: [C] or None.
            bias: [C] or None.
            running_mean: [C]; updated in training where given.
            running_var: [C]; updated in training where given.
            momentum: Share of the batch in the running statistics.
            call: The rest.
            origin: Of the input.
            statistics: What `call.statistics` takes is added to this list.
        """
        y, mean, rstd = kernels.batch_norm_act(
            input,
            weight,
            bias,
            running_mean,
            running_var,
            training=call.training,
            momentum=momentum,
            eps=call.eps,
        )
        kept = (mean, rstd) if call.training else (running_mean, running_var)
        statistics.extend(cast("tuple[Tensor, Tensor]", kept))
        needs_dx, needs_dweight = ctx.needs_input_grad[:2]
        reads_x = needs_dweight or (needs_dx and call.training)
        use = Use(input, origin) if reads_x else None
        ctx.save_for_backward(*(() if use is None else use.take()), weight, *kept)
        ctx.use = use
        ctx.call, ctx.dtype = call, input.dtype
        return y

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of input, weight and bias."""
        (grad,) = grads
        *kept, weight, first, second = ctx.saved_tensors
        mean, rstd = ctx.call.statistics(first, second)
        needs = ctx.needs_input_grad
        if ctx.use is None:
            dx = None
            if needs[0]:
                scale = rstd if weight is None else weight * rstd
                dx = (grad * scale.view(-1, *[1] * (grad.dim() - 2))).to(ctx.dtype)
            dbias = grad.sum([0, *range(2, grad.dim())], dtype=rstd.dtype) if needs[2] else None
            return dx, None, dbias, *_NOTHING
        x = ctx.use.get(kept)
        found = kernels.batch_norm_act_backward(
            grad, x, weight, None, mean, rstd, training=ctx.call.training, needs_dx=needs[0]
        )
        return *_asked(found, needs), *_NOTHING


class BatchNormActivation(torch.autograd.Function):
    """An activation whose input is a batch norm's output: both gradients in one.

    Keeps what the batch norm keeps, in the same memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        norm: Edges,
        normalized: Tensor,
        activate: Callable[[Tensor], Tensor],
        act: kernels.Activation,
        inplace: bool,
    ) -> Tensor:
        """Activate.

        Args:
            ctx: Of autograd.
            input: The batch norm's, [N, C, ...]; nothing but the way that its gradient goes.
            weight: The batch norm's, [C] or None.
            bias: The batch norm's, [C] or None.
            norm: The rest of it.
            normalized: Its output, without gradient.
            activate: The activation, which may write over it.
            act: Its name among the kernels.
            inplace: Whether it does.
        """
        ctx.use = Use(input, norm.origin)
        ctx.save_for_backward(*ctx.use.take(), weight, bias, *norm.statistics)
        ctx.call, ctx.act = norm.call, act
        if inplace:
            ctx.mark_dirty(normalized)
        return activate(normalized)

    @staticmethod
    @once
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of the batch norm's input, weight and bias."""
        (grad,) = grads
        *kept, weight, bias, first, second = ctx.saved_tensors
        mean, rstd = ctx.call.statistics(first, second)
        found = kernels.batch_norm_act_backward(
            grad,
            ctx.use.get(kept),
            weight,
            bias,
            mean,
            rstd,
            training=ctx.call.training,
            act=ctx.act,
            needs_dx=ctx.needs_input_grad[0],
        )
        return *_asked(found, ctx.needs_input_grad), *[None] * 5


@dataclass(frozen=True)
class Edges:
    """What an activation needs to stand in for the batch norm before it.

    Attributes:
        input: The batch norm's, with its graph.
        weight: The batch norm's.
        bias: The batch norm's.
        statistics: What `call.statistics` takes.
        call: How it was called.
        origin: Of its input.
    """

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    statistics: tuple[Tensor, Tensor]
    call: NormCall
    origin: Origin | None


_NOTHING = [None] * 6


def _asked(
    found: tuple[Tensor | None, Tensor, Tensor], needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    return tuple(one if need else None for one, need in zip(found, needs, strict=False))


def _again(call: NormCall, source: Reader) -> Rebuild:
    def rebuild(kept: Kept) -> Tensor:
        weight, bias, first, second = kept[source.count :]
        mean, rstd = call.statistics(cast(Tensor, first), cast(Tensor, second))
        return kernels.batch_norm_act_again(source.get(kept), weight, bias, mean, rstd)

    return rebuild


def replace_batch_norm(
    scope: Scope,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Stand in for `batch_norm`."""
    if (
        not is_plain(input, weight, bias, running_mean, running_var)
        or not needs_grad(input, weight, bias)
        or input.dim() < 2
        or (training and input.numel() <= input.shape[1])  # one value per channel: torch refuses
        or (not training and (running_mean is None or running_var is None))
    ):
        return NotImplemented
    call = NormCall(bool(training), eps)
    origin = origin_of(input)
    origin = origin if origin is not None and origin.kind == "product" else None
    statistics: list[Tensor] = []
    y: Tensor = apply(
        BatchNorm,
        input,
        weight,
        bias,
        running_mean,
        running_var,
        momentum,
        call,
        origin,
        statistics,
    )
    if needs_grad(weight) or (training and input.requires_grad):  # x is kept
        edges = Edges(input, weight, bias, (statistics[0], statistics[1]), call, origin)
        inputs = ((input,) if origin is None else origin.inputs) + (weight, bias, *statistics)
        memos = () if origin is None else origin.memos
        rebuild = _again(call, Reader(origin))
        note = Origin("batch_norm", inputs, rebuild, edges, memos)
        note_origin(y, note, scope.notes)
    return y
