"""Operations that only move values around, and where they put the channels.

Scale and shift of a channel commute with an operation that moves whole values, or takes means within
a channel. The dimension that holds the channels is followed through each; an operation that is not
known here ends the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from efftrain.surgery.trace import Event

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Passage:
    """The way of channels through one operation.

    Attributes:
        outputs: Tensors that hold the values afterwards, each with the dimension of its channels.
        pads: Whether zeros were put beside them: a scale leaves these alone, a shift does not.
    """

    outputs: tuple[tuple[Tensor, int], ...]
    pads: bool = False


def pass_through(event: Event, tensor: Tensor, dim: int) -> Passage | None:
    """Follow the channels of a tensor through an operation.

    Args:
        event: The operation.
        tensor: One of its inputs.
        dim: The dimension of that tensor that holds the channels, from 0.

    Returns:
        Where they are afterwards; None where the operation does more than move them.
    """
    first = event.args[0] if event.args else None
    rule = _RULES.get(event.op.overloadpacket)
    if rule is None or first is not tensor:
        return None
    if event.op.overloadpacket is _ATEN.constant_pad_nd:
        pads = _padding(event, tensor, dim)
        return None if pads is None else Passage(((event.outputs[0], dim),), pads)
    found = rule(event, tensor, dim)
    if found is None:
        return None
    outputs = tuple((one, found) for one in event.outputs)
    return Passage(outputs) if all(tensor.dtype == one.dtype for one in event.outputs) else None


def _same(event: Event, tensor: Tensor, dim: int) -> int | None:
    return dim


def _regrouped(event: Event, tensor: Tensor, dim: int) -> int | None:
    """A view keeps the channels if one dimension still has all of them at the same stride."""
    after = event.outputs[0].shape
    if tensor.numel() == 0:
        return None
    behind = math.prod(tensor.shape[dim + 1 :])
    for place, size in enumerate(after):
        if size == tensor.shape[dim] and math.prod(after[place + 1 :]) == behind:
            return place
    return None


def _permuted(event: Event, tensor: Tensor, dim: int) -> int | None:
    order = [place % tensor.ndim for place in _ints(event.args[1])]
    return order.index(dim)


def _swapped(event: Event, tensor: Tensor, dim: int) -> int | None:
    if event.op.overloadpacket is _ATEN.t:
        return 1 - dim if tensor.ndim == 2 else dim
    one, other = (place % tensor.ndim for place in _ints(event.args[1:3]))
    return {one: other, other: one}.get(dim, dim)


def _unsqueezed(event: Event, tensor: Tensor, dim: int) -> int | None:
    place = event.args[1] % (tensor.ndim + 1)
    return dim + 1 if place <= dim else dim


def _squeezed(event: Event, tensor: Tensor, dim: int) -> int | None:
    given = _ints(event.args[1]) if len(event.args) > 1 else list(range(tensor.ndim))
    gone = {place % tensor.ndim for place in given if tensor.shape[place] == 1}
    return None if dim in gone else dim - sum(place < dim for place in gone)


def _expanded(event: Event, tensor: Tensor, dim: int) -> int | None:
    place = dim + event.outputs[0].ndim - tensor.ndim
    return place if event.outputs[0].shape[place] == tensor.shape[dim] else None


def _cut_beside(event: Event, tensor: Tensor, dim: int) -> int | None:
    """Slices, splits and gathers along another dimension."""
    at = event.kwargs.get("dim")
    if at is None:
        index = 2 if event.op.overloadpacket in (_ATEN.split, _ATEN.split_with_sizes) else 1
        at = event.args[index] if len(event.args) > index else 0
    return None if at % tensor.ndim == dim else dim


def _taken_out(event: Event, tensor: Tensor, dim: int) -> int | None:
    """Select and unbind take a dimension away."""
    at = _cut_beside(event, tensor, dim)
    if at is None:
        return None
    gone = (event.args[1] if len(event.args) > 1 else event.kwargs.get("dim", 0)) % tensor.ndim
    return dim - 1 if gone < dim else dim


def _rolled(event: Event, tensor: Tensor, dim: int) -> int | None:
    if event.op.overloadpacket is _ATEN.roll:
        given: object = event.args[2] if len(event.args) > 2 else ()
    else:
        given = event.args[1]
    places = [place % tensor.ndim for place in _ints(given)]
    return dim if places and dim not in places else None


def _averaged(event: Event, tensor: Tensor, dim: int) -> int | None:
    """A mean over other dimensions: the shares add up to one, so that a shift survives."""
    given = event.args[1] if len(event.args) > 1 else None
    if given is None:
        return None
    gone = {place % tensor.ndim for place in _ints(given)}
    keep = event.args[2] if len(event.args) > 2 else event.kwargs.get("keepdim", False)
    if dim in gone or not gone:
        return None
    return dim if keep else dim - sum(place < dim for place in gone)


def _pooled(event: Event, tensor: Tensor, dim: int) -> int | None:
    return dim if dim < tensor.ndim - 2 else None


def _padding(event: Event, tensor: Tensor, dim: int) -> bool | None:
    """Whether padding puts zeros beside the channels; None where it changes these."""
    amounts = _ints(event.args[1])
    value = event.args[2] if len(event.args) > 2 else event.kwargs.get("value", 0)
    if not any(amounts):
        return False
    at = 2 * (tensor.ndim - 1 - dim)  # amounts are listed from the last dimension on
    return None if value != 0 or any(amounts[at : at + 2]) else True


def _ints(given: object) -> list[int]:
    return [given] if isinstance(given, int) else list(cast("Sequence[int]", given))


_Rule = Callable[[Event, Tensor, int], "int | None"]

_RULES: dict[Any, _Rule] = {
    **dict.fromkeys((_ATEN.alias, _ATEN.clone, _ATEN.contiguous, _ATEN.detach), _same),
    **dict.fromkeys((_ATEN.lift_fresh, _ATEN._to_copy, _ATEN.constant_pad_nd), _same),
    **dict.fromkeys((_ATEN.view, _ATEN._unsafe_view, _ATEN.reshape), _regrouped),
    _ATEN._reshape_alias: _regrouped,
    _ATEN.permute: _permuted,
    **dict.fromkeys((_ATEN.transpose, _ATEN.t), _swapped),
    _ATEN.unsqueeze: _unsqueezed,
    _ATEN.squeeze: _squeezed,
    _ATEN.expand: _expanded,
    **dict.fromkeys((_ATEN.slice, _ATEN.index_select), _cut_beside),
    **dict.fromkeys((_ATEN.split, _ATEN.split_with_sizes), _cut_beside),
    **dict.fromkeys((_ATEN.select, _ATEN.unbind), _taken_out),
    **dict.fromkeys((_ATEN.roll, _ATEN.flip), _rolled),
    _ATEN.mean: _averaged,
    _ATEN._adaptive_avg_pool2d: _pooled,
}
"""A rule gives the dimension of the channels afterwards, or None."""
