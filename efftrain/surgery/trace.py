"""Record one forward pass: which tensor goes from which layer to which other.

The model really runs, under a dispatch mode that sees every operation, so that there is nothing that
cannot be traced, and adjacency is a fact about tensors, never about names or the order of modules.
It holds for calls of the same form as the recorded one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from efftrain.surgery.equality import in_eval
from efftrain.surgery.inputs import Inputs, call, tensors_in


@dataclass(eq=False)
class LayerCall:
    """One run of a layer that is looked at as a whole.

    Attributes:
        path: Where the layer is in the model.
        layer: The module.
        inputs: The tensors it was given.
        output: The tensor it returned; None where it returned none, the first of several.
    """

    path: str
    layer: nn.Module
    inputs: tuple[Tensor, ...]
    output: Tensor | None = None


@dataclass(eq=False)
class Event:
    """One operation outside of those layers.

    Attributes:
        op: The ATen operation.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        outputs: The tensors it returned.
        where: Path of the module that it ran in.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]
    where: str

    def __str__(self) -> str:
        name = str(self.op).split(".")[1]
        return f"{name} in {self.where}" if self.where else name


User: TypeAlias = "LayerCall | Event"


@dataclass
class Trace:
    """What happened in one forward pass. It keeps the activations alive: one sample is enough.

    Attributes:
        calls: Path of a layer to its runs; a layer that did not run is not in it.
        returned: Identities of the tensors that the model returned.
        borrowed: Identities of parameters that ran outside of their own layer, to where that was.
    """

    calls: dict[str, list[LayerCall]] = field(default_factory=dict[str, list[LayerCall]])
    returned: frozenset[int] = frozenset()
    borrowed: dict[int, str] = field(default_factory=dict[int, str])
    _users: dict[int, list[User]] = field(default_factory=dict[int, list[User]])
    _makers: dict[int, User] = field(default_factory=dict[int, User])
    _alive: list[Tensor] = field(default_factory=list[Tensor])  # else an identity is used again

    def users_of(self, tensor: Tensor) -> list[User]:
        """What a tensor went into, in order."""
        return self._users.get(id(tensor), [])

    def maker_of(self, tensor: Tensor) -> User | None:
        """What a tensor came out of; None for inputs and parameters."""
        return self._makers.get(id(tensor))

    def add_use(self, tensor: Tensor, user: User) -> None:
        """Note that a tensor went into something."""
        self._alive.append(tensor)
        self._users.setdefault(id(tensor), []).append(user)

    def add_output(self, tensor: Tensor, maker: User) -> None:
        """Note where a tensor came from. One that was changed in place keeps its first maker."""
        self._alive.append(tensor)
        self._makers.setdefault(id(tensor), maker)


def trace(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Inputs) -> Trace:
    """Run a model once in eval mode and record the flow of tensors between layers.

    Args:
        model: Any module; its modes and hooks are as before afterwards.
        layers: The modules to see as a whole, by path; what happens inside them is not recorded.
        inputs: One call's.

    Returns:
        The record.
    """
    recorder = _Recorder(layers)
    fast = torch.backends.mha.get_fastpath_enabled()
    # the fast path of nn.TransformerEncoder would hide its norms and linears in one operation
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with in_eval(model), _watching(model, recorder), recorder:
            output = call(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    recorder.trace.returned = frozenset(id(tensor) for tensor in tensors_in(output))
    recorder.trace.add_output_references(output)
    return recorder.trace
