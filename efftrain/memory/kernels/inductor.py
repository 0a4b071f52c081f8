"""Functions of tensors compiled by Inductor, a bounded number of times.

Sizes are dynamic, so the layers of a network share one compilation as long as they agree in dtypes,
ranks, memory formats and options. Inductor keeps what it compiled on disk.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from efftrain.memory.kernels.layout import memory_format_of

_log = logging.getLogger(__name__)
_lock = threading.Lock()

R = TypeVar("R")

_compiled: dict[tuple[object, ...], Callable[..., Any]] = {}
_failed: set[str] = set()


def run_compiled(
    function: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> R | None:
    """Call the function compiled; None, said once, where it does not compile."""
    name = function.__qualname__
    if name in _failed:
        return None
    statics = {key: value for key, value in kwargs.items() if not isinstance(value, Tensor)}
    tensors = {key: value.detach() for key, value in kwargs.items() if isinstance(value, Tensor)}
    plain = [value.detach() if isinstance(value, Tensor) else value for value in args]
    key = (
        name,
        *(_kind(value) for value in plain),
        *((key, _kind(value)) for key, value in tensors.items()),
        *sorted(statics.items()),
    )
    with _lock:
        if key not in _compiled:
            _compiled[key] = _compile(function)
    try:
        with torch.no_grad():
            return _compiled[key](*plain, **tensors, **statics)
    except _compile_errors() as error:
        _failed.add(name)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        _log.warning("%s runs unfused: torch.compile failed: %s", name, reason)
        return None


def compilations() -> int:
    """How many versions were asked for so far."""
    return len(_compiled)


def _compile(function: Callable[..., R]) -> Callable[..., R]:
    # Dynamo counts recompilations by code object: each version gets its own, so that none uses up
    # the limit of another. (Not functools.partial: all of those share a frame of Dynamo's own.)
    original = cast(FunctionType, function)
    twin = FunctionType(
        original.__code__.replace(co_name=f"{original.__name__}_{len(_compiled)}"),
        original.__globals__,
        original.__name__,
        original.__defaults__,
        original.__closure__,
    )
    twin.__kwdefaults__ = original.__kwdefaults__
    # its overloads are not fully typed
    return cast(Any, torch).compile(twin, dynamic=True)


def _kind(value: object) -> object:
    """What a version depends on: of a tensor dtype, device, rank and memory format."""
    if not isinstance(value, Tensor):
        return value
    return (value.dtype, value.device, value.dim(), memory_format_of(value), value.is_contiguous())


@functools.cache
def _compile_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return (TorchDynamoException, InductorError)
