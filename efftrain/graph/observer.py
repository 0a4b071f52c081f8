"""Every operator call of a run, as it passes below autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Operator:
    """What is known of an operator without calling it.

    Attributes:
        name: `convolution`; with its namespace where that is not torch's own: `mylib::op`.
        view: Whether its result only looks at its input's memory, in whatever shape.
        pointwise: Whether each element of the result depends on one of each input.
    """

    name: str
    view: bool
    pointwise: bool


class Call:
    """One call of an operator.

    Attributes:
        operator: Which.
        args: Positional arguments.
        kwargs: Keyword arguments.
        result: What it returned.
        inputs: Tensors that it was given, those in lists included.
        outputs: Tensors that it returned.
    """

    __slots__ = ("args", "inputs", "kwargs", "operator", "outputs", "result")

    def __init__(
        self, operator: Operator, args: Sequence[Any], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Find the tensors."""
        self.operator = operator
        self.args = args
        self.kwargs = kwargs
        self.result = result
        self.inputs = tensors_in(args)
        if kwargs:
            self.inputs += tensors_in(kwargs.values())
        self.outputs = [result] if isinstance(result, Tensor) else tensors_in((result,))


class Observer(TorchDispatchMode):
    """Calls a listener after each operator call, those of backward and of recomputation included."""

    supports_higher_order_operators = True

    def __init__(self, listener: Callable[[Call], None]) -> None:
        """Listen from `__enter__` to `__exit__`."""
        cast(Any, super()).__init__()
        self._listener = listener
        self._shapes: Any = None

    def __enter__(self) -> Observer:
        """See whether tensors without values are in use, which know results faster than torch."""
        mode: Any = cast(Any, torch)._C._get_dispatch_mode(_FAKE)
        self._shapes = mode if hasattr(mode, "result_of") else None
        return cast(Any, super()).__enter__()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the operator, then the listener."""
        kwargs = kwargs or {}
        shapes = self._shapes
        result = func(*args, **kwargs) if shapes is None else shapes.result_of(func, args, kwargs)
        if func is not _DEVICE:
            self._listener(Call(describe(func), args, kwargs, result))
        return result


# A tensor without values answers `.device` by a call of this: no operation, and half of all calls.
_DEVICE = torch.ops.prim.device.default
_FAKE = cast(Any, torch)._C._TorchDispatchModeKey.FAKE

# Activation functions that torch does not tag in each of their forms (2.13).
_POINTWISE = frozenset(
    ["relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "elu", "celu", "mish",
     "leaky_relu", "softplus", "_prelu_kernel", "log_sigmoid_forward", "threshold"]
)  # fmt: skip

_known: dict[Any, Operator] = {}


def describe(func: Any) -> Operator:
    """The operator that a dispatch mode was handed."""
    operator = _known.get(func)
    if operator is None:
        operator = _known[func] = _describe(func)
    return operator


def _describe(func: Any) -> Operator:
    if not hasattr(func, "_schema"):  # a higher-order operator, such as flex_attention
        return Operator(str(func), view=False, pointwise=False)
    schema = func._schema
    namespace, _, name = schema.name.partition("::")
    returns: list[Any] = [returned.alias_info for returned in schema.returns]
    return Operator(
        name=name if namespace in ("aten", "prim", "prims") else f"{namespace}::{name}",
        view=torch.Tag.inplace_view in func.tags
        or (bool(returns) and all(alias is not None and not alias.is_write for alias in returns)),
        pointwise=torch.Tag.pointwise in func.tags or name.removesuffix("_") in _POINTWISE,
    )


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Tensors among some values, and in lists and tuples among them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(cast(Iterable[Any], value))
    return found


def storage_key(tensor: Tensor) -> int:
    """Names a tensor's memory: equal for views of one base. Valid while the memory is held."""
    return cast(Any, tensor.untyped_storage())._cdata
