"""torch.autograd.Function, typed: torch leaves it partly unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.autograd.function import once_differentiable

C = TypeVar("C", bound=Callable[..., Any])


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """Call an autograd function."""
    return cast(Any, function).apply(*args)


def once(backward: C) -> C:
    """Mark a backward pass that has none of its own: a second derivative is refused by torch."""
    return cast(C, once_differentiable(backward))
