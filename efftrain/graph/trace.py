"""One forward pass of a model as a list of operations on tensors, with their memory and modules.

Recorded by running the model on a private copy (see `rehearsal`), so every model that runs can be
traced; nothing is exported. `torch.export` gives the same graph where it works, several times slower.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from efftrain.graph.observer import Call, Observer, Operator, storage_key
from efftrain.graph.rehearsal import Rehearsal, rehearse


@dataclass(frozen=True)
class Value:
    """A tensor of the pass.

    Attributes:
        shape: Its sizes.
        dtype: Its element type.
        memory: Index of the value that held its memory first; its own, where it did.
        data: Whether it depends on the model's input; a weight, or what is made from weights
            alone, does not.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    memory: int
    data: bool

    @property
    def elements(self) -> int:
        """The product of its sizes."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Reference:
    """Stands for a tensor among an operation's arguments: its index among the values."""

    index: int


@dataclass(frozen=True)
class Operation:
    """One operator call.

    Attributes:
        operator: Which.
        path: Innermost module that was running.
        call: The number of that module's call.
        inputs: Indices of the values that it read.
        outputs: Indices of the values that it returned; an in-place operation returns an input.
        arguments: Positional arguments, tensors as `Reference`.
    """

    operator: Operator
    path: str
    call: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Graph:
    """A forward pass.

    Attributes:
        operations: In the order in which they ran.
        values: Every tensor.
        inputs: Indices of the model's input tensors.
        outputs: Indices of the tensors that it returned.
        types: Class name of each module, by path.
        leaves: Paths of modules without children.
        run_with_values: Whether the model asked for values; otherwise shapes were enough.
    """

    operations: tuple[Operation, ...]
    values: tuple[Value, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    types: dict[str, str] = field(repr=False)
    leaves: frozenset[str] = field(repr=False)
    run_with_values: bool


def trace(model: nn.Module, batch: Any) -> Graph:
    """Trace inference of one sample.

    Args:
        model: Meta device is enough; it is traced in eval mode and left in its own.
        batch: A tensor, a sequence of positional arguments or a mapping of keyword arguments; the
            first sample is taken.

    Returns:
        The graph.

    Raises:
        ConfigError: The model asks for values and has none.
    """
    return rehearse(trace_rehearsal, model, batch)


def trace_rehearsal(rehearsal: Rehearsal, also: Callable[[Call], None] | None = None) -> Graph:
    """Trace inference of the first sample of a rehearsal; see `trace`.

    Args:
        rehearsal: Its model is in eval mode for the time of the pass.
        also: Another listener to the calls of the same pass.

    Returns:
        The graph.
    """
    rehearsal = rehearsal.of_one_sample()
    tracer = _Tracer(rehearsal)

    def listen(call: Call) -> None:
        tracer.on_call(call)
        if also is not None:
            also(call)

    with torch.no_grad(), _in_eval_mode(rehearsal.model), Observer(listen):
        output = rehearsal.forward()
    return tracer.graph(output)


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Generator[None, None, None]:
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Tracer:
    """Holds every tensor until the end, so that neither they nor their memory change their names."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal
        self._held: list[Tensor] = []
        self._values: list[Value] = []
        self._index: dict[int, int] = {}
        self._memory: dict[int, int] = {}
        self._operations: list[Operation] = []
        given = (rehearsal.args, rehearsal.kwargs)
        self._inputs = [self._value(t, data=True) for t in _tensors(given)]

    def on_call(self, call: Call) -> None:
        # a tensor made like another one has its shape, not its values
        name = call.operator.name
        read = [] if name.startswith("new_") or name.endswith("_like") else call.inputs
        inputs = [self._value(tensor, data=False) for tensor in read]
        data = any(self._values[index].data for index in inputs)
        outputs = [self._value(tensor, data) for tensor in call.outputs]
        stack = self._rehearsal.stack
        self._operations.append(
            Operation(
                operator=call.operator,
                path=stack.path,
                call=stack.call,
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                arguments=tuple(self._refer(argument) for argument in call.args),
            )
        )

    def graph(self, output: Any) -> Graph:
        return Graph(
            operations=tuple(self._operations),
            values=tuple(self._values),
            inputs=tuple(self._inputs),
            outputs=tuple(self._value(tensor, data=False) for tensor in _tensors(output)),
            types=self._rehearsal.stack.types,
            leaves=frozenset(self._rehearsal.stack.leaves),
            run_with_values=self._rehearsal.values,
        )

    def _value(self, tensor: Tensor, data: bool) -> int:
        """The tensor's index; the first time that it is seen, it is entered."""
        index = self._index.get(id(tensor))
        if index is None:
            index = self._index[id(tensor)] = len(self._values)
            self._held.append(tensor)
            memory = index
            if tensor.layout is torch.strided:
                memory = self._memory.setdefault(storage_key(tensor), index)
            data = data or self._memory_has_data(memory)
            self._values.append(Value(tuple(tensor.shape), tensor.dtype, memory, data))
        elif data and not self._values[index].data:  # written in place
            value = self._values[index]
            self._values[index] = Value(value.shape, value.dtype, value.memory, data=True)
        return index

    def _memory_has_data(self, memory: int) -> bool:
        return memory < len(self._values) and self._values[memory].data

    def _refer(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return Reference(self._value(argument, data=False))
        if isinstance(argument, (list, tuple)):
            return [self._refer(each) for each in cast("list[Any]", argument)]
        return argument


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
