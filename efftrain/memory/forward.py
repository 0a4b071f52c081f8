"""What stands in for the `forward` method of one module.

It lies in the instance, as part of its state: it is copied, pickled and sent to workers with it. Every
module has one, not only the model, so that a part that runs by itself (a checkpointed block that is
computed again in backward) keeps the same tensors as in the model.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from efftrain.memory.mode import Reducing, is_traced
from efftrain.memory.origin import forget
from efftrain.memory.scope import Scope

Special = Callable[[nn.Module, Scope, Any], Any]
"""Stands in for the forward of a module that is written in steps; NotImplemented to decline."""


class _Thread(threading.local):
    """What runs on this thread."""

    mode: Reducing | None = None
    off: bool = False


_thread = _Thread()


class ReducedForward:
    """Runs a module's own forward, and keeps less of it for backward.

    Args:
        module: Whose forward.
        recompute: As of `Scope`.
        masks: As of `Scope`.
        outermost: Whether it is the model: what is known of tensors ends with its pass.
        special: Stands in for the module's own forward where it can.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        recompute: bool,
        masks: bool,
        outermost: bool,
        special: Special | None = None,
    ) -> None:
        """Remember what to put back."""
        self.module = module
        self.recompute = recompute
        self.masks = masks
        self.outermost = outermost
        self.special = special
        self.before: Any = module.__dict__.get("forward")

    @property
    def __signature__(self) -> inspect.Signature:
        """Of the module's own forward: some libraries ask which inputs a model takes."""
        return inspect.signature(self._own)

    @property
    def _own(self) -> Any:
        return (
            self.before
            if self.before is not None
            else type(self.module).forward.__get__(self.module)
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run forward."""
        if not torch.is_grad_enabled() or _thread.off or is_traced():
            return self._own(*args, **kwargs)
        if _thread.mode is not None:
            return self._run(_thread.mode, args, kwargs)
        mode = _thread.mode = Reducing()
        try:
            with mode:
                return self._run(mode, args, kwargs)
        finally:
            _thread.mode = None

    def _run(self, mode: Reducing, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        scope = mode.scope
        masks, recompute = scope.masks, scope.recompute
        scope.masks, scope.recompute = self.masks, self.recompute
        try:
            if self.special is not None and len(args) == 1 and not kwargs:
                result = self.special(self.module, scope, args[0])
                if result is not NotImplemented:
                    return result
            return self._own(*args, **kwargs)
        finally:
            scope.masks, scope.recompute = masks, recompute
            if self.outermost:
                forget(scope.notes)


class plain_backward:  # a context manager, named as torch names no_grad
    """A context in which reduced models keep what plain torch keeps, on this thread."""

    def __enter__(self) -> None:
        """Switch off."""
        self._before = _thread.off
        _thread.off = True

    def __exit__(self, *_: object) -> None:
        """As it was."""
        _thread.off = self._before
