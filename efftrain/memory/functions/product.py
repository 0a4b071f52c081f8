"""Results of cheap, expanding layers, which are computed again rather than kept.

The last 1x1 of a bottleneck, the expanding and the depthwise convolution of an inverted residual, the
first linear layer of an MLP, gate and up of a gated one: each makes a large tensor of a small one. What
the small one can be made from is kept anyway, or it is kept itself; a norm, an activation or a product
that reads the large one computes it again. The layer that closes a block shrinks, so it never is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from efftrain.errors import MachineError
from efftrain.memory.origin import Kept, Memo, Origin, Reader, note_origin, origin_of
from efftrain.memory.scope import Scope

GROWTH = 2
"""From which growth on an input is worth keeping that nobody else keeps."""

Run = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""A layer: of input, weight and bias."""


def note_product(
    scope: Scope,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    run: Run,
    *,
    depthwise: bool = False,
) -> Tensor:
    """Say how a layer's output can be computed again, where that is worth it.

    Args:
        scope: Of the call.
        output: Of the layer.
        input: Of the layer.
        weight: Of the layer; frozen.
        bias: Of the layer, or None.
        run: The layer, as it was called.
        depthwise: Whether it takes so few operations that it need not expand.
    """
    if not scope.recompute or not output.requires_grad:
        return output
    origin = origin_of(input)
    grows = output.numel() > input.numel() or (depthwise and output.numel() == input.numel())
    if origin is None:
        grows = output.numel() >= GROWTH * input.numel()
    if not grows:
        return output
    source, memo = Reader(origin), Memo()
    autocast = _autocast(input.device.type)

    def rebuild(kept: Kept) -> Tensor:
        def compute() -> Tensor:
            weight, bias = kept[source.count :]
            x = source.get(kept)
            with torch.no_grad(), autocast():
                return run(x, _gathered(cast(Tensor, weight)), bias)

        return memo.recall(compute)

    inputs = ((input,) if origin is None else origin.inputs) + (weight, bias)
    memos = (*(() if origin is None else origin.memos), memo)
    return note_origin(output, Origin("product", inputs, rebuild, None, memos), scope.notes)


def _autocast(device: str) -> Callable[[], Any]:
    """What puts in force again what is in force now, without a cache that outlives the call."""
    enabled = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype, enabled=enabled, cache_enabled=False)


def _gathered(weight: Tensor) -> Tensor:
    if weight.numel() and not weight.is_meta and not weight.untyped_storage().nbytes():
        raise MachineError(
            "memory.mode=recompute: a weight is needed again that is not here any more; shard blocks as "
            "a whole (fully_shard of each block), or use memory=exact"
        )
    return weight
