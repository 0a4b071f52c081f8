"""Record one forward pass: which tensor goes from which layer to which other.

The model really runs, under a dispatch mode that sees every operation, so that there is nothing that
cannot be traced, and adjacency is a fact about tensors, never about names or the order of modules.
It holds for calls of the same form as the recorded one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from efftrain.surgery.equality import in_eval
from efftrain.surgery.inputs import Inputs, call, tensors_in

# These take a tensor's shape, dtype and device, and none of its values.
_ASKS_FOR_SHAPE_ONLY = frozenset(
    ["aten.new_zeros", "aten.new_ones", "aten.new_empty", "aten.new_full", "aten.zeros_like",
     "aten.ones_like", "aten.empty_like", "aten.full_like", "aten.rand_like", "aten.randn_like",
     "aten.new_empty_strided"]
)  # fmt: skip


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

    def set_returned(self, tensors: Iterable[Tensor]) -> None:
        """Note what the model returned."""
        kept = list(tensors)
        self._alive.extend(kept)
        self.returned = frozenset(id(tensor) for tensor in kept)


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
    recorder.trace.set_returned(tensors_in(output))
    return recorder.trace


class _Recorder(TorchDispatchMode):
    """Sees every operation; knows from hooks in which module it runs."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.trace = Trace()
        self._layers = {id(layer): path for path, layer in layers.items()}
        self._owners = {
            id(parameter): id(layer)
            for layer in layers.values()
            for parameter in layer.parameters(recurse=False)
        }
        self._paths: list[str] = []
        self._open: list[LayerCall] = []

    def enter(
        self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """A module starts to run."""
        self._paths.append(path)
        if id(module) not in self._layers:
            return
        one = LayerCall(self._layers[id(module)], module, tuple(tensors_in((args, kwargs))))
        self.trace.calls.setdefault(one.path, []).append(one)
        if not self._open:  # a layer inside another one is part of it
            for tensor in one.inputs:
                self.trace.add_use(tensor, one)
        self._open.append(one)

    def leave(
        self,
        path: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: object,
    ) -> None:
        """A module has run."""
        self._paths.pop()
        if id(module) not in self._layers:
            return
        one = self._open.pop()
        if self._open:
            return
        for tensor in tensors_in(output):
            one.output = tensor if one.output is None else one.output
            self.trace.add_output(tensor, one)

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and note its tensors."""
        kwargs = dict(kwargs or {})
        if str(func.overloadpacket) in _ASKS_FOR_SHAPE_ONLY:
            return func(*args, **kwargs)
        inputs = list(tensors_in((args, kwargs)))
        laid_out = [_layout(tensor) for tensor in inputs]
        output: object = func(*args, **kwargs)
        where = self._paths[-1] if self._paths else ""
        self._note_borrowed(inputs, where)
        if func is torch.ops.aten.as_strided_.default and _layout(inputs[0]) == laid_out[0]:
            return output  # average pooling only renames the strides of dimensions of size 1
        event = Event(func, args, kwargs, tuple(tensors_in(output)), where)
        if not self._open:
            for tensor in inputs:
                self.trace.add_use(tensor, event)
            for tensor in event.outputs:
                self.trace.add_output(tensor, event)
            return output
        own = {id(tensor) for tensor in self._open[0].inputs}
        for tensor in inputs:  # a layer that reaches for a tensor it was not given
            if id(tensor) not in own and self.trace.maker_of(tensor) is not None:
                self.trace.add_use(tensor, event)
        return output

    def _note_borrowed(self, inputs: list[Tensor], where: str) -> None:
        running = {id(one.layer) for one in self._open}
        for tensor in inputs:
            owner = self._owners.get(id(tensor))
            if owner is not None and owner not in running:
                self.trace.borrowed[id(tensor)] = where


def _layout(tensor: Tensor) -> list[tuple[int, int]]:
    """Sizes and strides of the dimensions that have more than one element."""
    return [(n, step) for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]


@contextmanager
def _watching(model: nn.Module, recorder: _Recorder) -> Generator[None]:
    handles: list[Any] = []
    named = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    try:
        for path, module in named:
            enter = cast("Callable[..., None]", partial(recorder.enter, path))
            leave = cast("Callable[..., None]", partial(recorder.leave, path))
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
