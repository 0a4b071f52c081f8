"""Which way a kernel runs: C++ on CPU, Inductor on GPU, or operator by operator.

`auto` takes the fused version where there is one for these tensors and they are large enough to gain
from it. Whoever looks on (a dispatch mode that counts or records operators, fake tensors, vmap, a
trace, `torch.compile` of the whole model) sees the operators of PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from efftrain.errors import EfftrainError
from efftrain.memory.kernels.inductor import run_compiled

Backend: TypeAlias = Literal["auto", "aten", "cpp", "inductor"]

P = ParamSpec("P")
R = TypeVar("R")

SMALLEST = 2**14
"""Elements from which `auto` looks for a fused version on CPU; below, calling costs more than it saves."""

SMALLEST_ON_GPU = 2**18
"""The same on GPU, where a compiled call costs some tens of microseconds. Not measured."""

# No public name tells these; torch.utils and torch._dynamo read them here as well.
_torch: Any = cast(Any, torch)._C

_backend: Backend = "auto"


def get_backend() -> Backend:
    """The way that was chosen last."""
    return _backend


def set_backend(backend: Backend) -> None:
    """Choose for this process, all threads of it: backward on GPU runs in its own.

    Args:
        backend: auto; or aten (operator by operator), cpp or inductor, where those can.

    Raises:
        EfftrainError: There is no such backend.
    """
    global _backend
    if backend not in get_args(Backend):
        raise EfftrainError(f"memory.kernels={backend!r}; there are {get_args(Backend)}")
    _backend = backend


@contextmanager
def using(backend: Backend) -> Generator[None]:
    """Choose for a while, all threads of the process."""
    before = get_backend()
    set_backend(backend)
    try:
        yield
    finally:
        set_backend(before)


def fusible(
    native: Callable[P, R | None] | None = None, *, compiles: bool = True
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function of tensors its fused versions; it becomes one that autograd does not see.

    Args:
        native: The same in C++; returns None for tensors that it is not made for.
        compiles: Whether Inductor gains from it.
    """

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        plain = torch.no_grad()(function)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            backend = choose((*args, *kwargs.values()))
            result = None
            if backend == "cpp" and native is not None:
                result = native(*args, **kwargs)
            elif backend == "inductor" and compiles:
                result = run_compiled(function, args, kwargs)
            return plain(*args, **kwargs) if result is None else result

        return run

    return wrap


def choose(values: tuple[object, ...]) -> Backend:
    """The backend for a call with these values; never `auto`."""
    if _backend == "aten":
        return "aten"
    tensors = [value for value in values if isinstance(value, Tensor)]
    if is_watched() or not all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors):
        return "aten"
    if _backend != "auto":
        return _backend
    elements = max(tensor.numel() for tensor in tensors)
    if tensors[0].is_cpu:
        return "cpp" if elements >= SMALLEST else "aten"
    on_gpu = tensors[0].is_cuda and elements >= SMALLEST_ON_GPU
    return "inductor" if on_gpu and has_triton() else "aten"


def is_watched() -> bool:
    """Whether something stands between Python and the kernels and has to see each operator."""
    return bool(
        _torch._len_torch_dispatch_stack()
        or _torch._functorch.peek_interpreter_stack() is not None
        or _torch._get_tracing_state() is not None
    )


@functools.cache
def has_triton() -> bool:
    """Whether Inductor can compile for the GPU."""
    try:
        from torch.utils._triton import has_triton as found
    except ImportError:
        return False
    return bool(found())
