"""While a model runs, torch's functions are taken for ours.

Modules reach torch through its public functions: what a convolution module does with its padding
mode, or a subclass with its weight, happens before. So a function has one meaning whoever calls it,
and no list of modules has to be right.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode

from efftrain.memory.scope import Scope
from efftrain.memory.table import REPLACED


class Reducing(TorchFunctionMode):
    """Replaces the functions of one pass through a model, on one thread."""

    def __init__(self) -> None:
        """Start in an empty scope."""
        super().__init__()
        self.scope = Scope()

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the replacement; torch's own where there is none, or where it declines."""
        kwargs = kwargs or {}
        replace = REPLACED.get(func)
        if replace is not None and torch.is_grad_enabled() and not _is_transformed():
            result = replace(self.scope, *args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)


def is_traced() -> bool:
    """Whether torch is recording the model rather than running it.

    `torch.compile` partitions forward and backward by itself; see `joint_graph`.
    """
    return torch.compiler.is_compiling() or cast(Any, torch).jit.is_tracing()


def _is_transformed() -> bool:
    """Whether `torch.func` is at work: it needs rules of functions that ours do not have."""
    return cast(Any, torch)._C._functorch.peek_interpreter_stack() is not None
