"""Train norms in float32 inside a model of low precision.

In bfloat16 the next number above 1 is 1.0078: AdamW at a rate of 1e-3 rounds back to 1 on every
step, and at 1e-4 nothing in the norms ever moves. So a norm that trains gets its value g = g0 + d in
float32: d is what training adds, and none of it is rounded away. The parameter keeps its identity,
name and place; the layer computes in float32 and answers in the precision that it was asked in.

A torch batch norm does that by itself once its parameters and statistics are float32. Any other norm
gets a pair of hooks, which cast its input up and its output down.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import (
    _BatchNorm,  # pyright: ignore[reportPrivateUsage]  # the base of every batch norm
)

from efftrain.peft.record import record_of
from efftrain.peft.tree import join, own_buffers, own_parameters, walk

LOW = (torch.bfloat16, torch.float16)


class Float32Compute:
    """The two hooks of one layer: up before it, down after it. Copied and pickled with the layer."""

    def __init__(self) -> None:
        """Nothing is known of the input yet."""
        self.asked_in: torch.dtype | None = None

    def up(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Cast every tensor of low precision that goes in, and remember which it was."""
        given = [*args, *kwargs.values()]
        low = [one.dtype for one in given if isinstance(one, Tensor) and one.dtype in LOW]
        self.asked_in = low[0] if low else None
        return tuple(map(_raise, args)), {name: _raise(one) for name, one in kwargs.items()}

    def down(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        """Cast what comes out to what went in."""
        if self.asked_in is None:
            return output
        if isinstance(output, tuple):
            parts = cast("tuple[Any, ...]", output)
            return tuple(_lower(one, self.asked_in) for one in parts)
        return _lower(output, self.asked_in)


def hold_float32(model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Make the layers that own the named tensors compute in float32, where they are lower.

    Args:
        model: Changed in place: data types of the layers' parameters and buffers, and hooks. Cast
            the model as a whole before this, not after: `model.to(torch.bfloat16)` undoes it.
        names: Parameters or running statistics of norms.

    Returns:
        Paths of the layers that changed.
    """
    record = record_of(model)
    changed = _owners(model, frozenset(names))
    for path, module in changed:
        for name, tensor in _tensors(module).items():
            if tensor.dtype in LOW:
                record.low[join(path, name)] = tensor.detach().cpu().clone()
                _set_data(tensor, tensor.detach().float())
        if not isinstance(module, _BatchNorm):
            compute = Float32Compute()
            module.register_forward_pre_hook(compute.up, with_kwargs=True)
            module.register_forward_hook(compute.down)
    return tuple(path for path, _ in changed)


def _owners(model: nn.Module, names: frozenset[str]) -> list[tuple[str, nn.Module]]:
    """Layers of low precision that own one of the tensors, or share one with such a layer."""
    layers = [
        (path, module, {id(one) for one in _tensors(module).values() if one.dtype in LOW})
        for path, module in walk(model)
    ]
    low = {
        id(t)
        for path, m, _ in layers
        for name, t in _tensors(m).items()
        if join(path, name) in names
    }
    found: set[str] = set()
    while True:
        more = {path for path, _, held in layers if held & low} - found
        if not more:
            return [(path, module) for path, module, _ in layers if path in found]
        found |= more
        low |= {one for path, _, held in layers if path in more for one in held}


def release_float32(model: nn.Module, paths: Iterable[str] | None = None) -> tuple[str, ...]:
    """Take `hold_float32` back: values are rounded to the precision that the layers came in.

    Args:
        model: Changed in place.
        paths: Which layers, as `hold_float32` returned them; by default all that are held.

    Returns:
        Paths of the layers that changed.
    """
    record = record_of(model)
    wanted = None if paths is None else frozenset(paths)
    lowered: set[int] = set()
    changed: list[str] = []
    for path, module in walk(model):
        if wanted is not None and path not in wanted:
            continue
        for name, tensor in _tensors(module).items():
            low = record.low.pop(join(path, name), None)
            if low is not None:
                _set_data(tensor, tensor.detach().to(low.dtype))
                lowered.add(id(tensor))
        if not lowered.isdisjoint(map(id, _tensors(module).values())):
            _remove_hooks(module)
            changed.append(path)
    return tuple(changed)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**own_parameters(module), **own_buffers(module)}


def _set_data(tensor: Tensor, value: Tensor) -> None:
    """Exchange the content of a parameter or buffer: whoever holds the tensor sees the new one."""
    tensor.grad = None  # of the old data type
    tensor.data = value


def _remove_hooks(module: nn.Module) -> None:
    # by what they are: the handles that registering returned do not survive a copy of the model
    for register in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = cast("dict[int, object]", getattr(module, register))
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), Float32Compute):
                del hooks[key]


def _raise(one: Any) -> Any:
    return one.float() if isinstance(one, Tensor) and one.dtype in LOW else one


def _lower(one: Any, dtype: torch.dtype) -> Any:
    return one.to(dtype) if isinstance(one, Tensor) and one.dtype == torch.float32 else one
