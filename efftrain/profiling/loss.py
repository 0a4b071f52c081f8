"""The scalar that a step differentiates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

LossFunction = Callable[[Any], Tensor]


def loss_of(output: Any, loss_fn: LossFunction | None) -> Tensor | None:
    """The loss of a model's output.

    Args:
        output: Whatever the model returned.
        loss_fn: From the output to a scalar. Without: the output's own `loss` (Hugging Face models
            that were given labels), or the sum of its floating point tensors.

    Returns:
        A scalar; None where there is nothing to add up.
    """
    if loss_fn is not None:
        return loss_fn(output)
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    tensors = [
        leaf
        for leaf in tree_leaves(output)
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    ]
    sums = [tensor.sum() for tensor in tensors]
    return sum(sums[1:], sums[0]) if sums else None
