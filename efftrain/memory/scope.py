"""What a replacement knows of the place that it is called in."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from efftrain.memory.origin import Origin

_ORDINARY = (Tensor, nn.Parameter)


@dataclass
class Scope:
    """One pass through a model.

    Attributes:
        masks: Whether one bit per element is less than what plain torch would keep for the module
            that is running: not where a trainable layer beside it keeps the activation's output.
        recompute: Whether results of cheap layers that expand are computed again.
        notes: Of origins in this pass.
    """

    masks: bool = True
    recompute: bool = False
    notes: weakref.WeakSet[Origin] = field(default_factory=weakref.WeakSet[Origin])


def is_plain(*tensors: Any) -> bool:
    """Whether these are ordinary floating point tensors.

    A subclass made of other tensors (DTensor, a quantized weight) has its own arithmetic.
    """
    for one in tensors:
        if one is None:
            continue
        if type(one) not in _ORDINARY and (
            not isinstance(one, Tensor) or is_traceable_wrapper_subclass(one)
        ):
            return False
        if not one.is_floating_point():
            return False
    return True


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether any of these takes part in backward."""
    for one in tensors:  # noqa: SIM110  # called for every operation: a generator takes twice as long
        if one is not None and one.requires_grad:
            return True
    return False


def is_watched(tensor: Tensor) -> bool:
    """Whether somebody asks for this tensor's own gradient, so that backward must pass through it."""
    return bool(tensor._backward_hooks) or tensor.retains_grad  # pyright: ignore[reportPrivateUsage]
