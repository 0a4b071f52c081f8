"""How a tensor can be made again from tensors that are kept anyway.

A norm keeps its input for its own gradient. Whatever follows it can make the norm's output again from
that input, and need not keep it. So the output carries a note of where it came from.

A note is believed only while it is certain: nothing has written to the tensor since, and the same
saved-tensor hooks are in force (inside a checkpointed region, forward and recomputation must keep the
same number of tensors, whatever is known outside).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

Kept: TypeAlias = "Sequence[Tensor | None]"
Rebuild: TypeAlias = Callable[[Kept], Tensor]

_NOTE = "_efftrain_origin"


@dataclass(eq=False)
class Origin:
    """Where a tensor came from.

    Attributes:
        kind: `batch_norm` and `activation` have backward passes of their own with what follows.
        inputs: Tensors that autograd keeps anyway; with their graph, so that a gradient can be sent
            to them directly.
        rebuild: Makes the tensor again, without gradient, from what was saved of `inputs`.
        details: What the kind's own backward passes need to know besides.
    """

    kind: Literal["batch_norm", "norm", "activation", "product"]
    inputs: tuple[Tensor | None, ...]
    rebuild: Rebuild
    details: Any = None
    version: int = 0
    hooks: Any = None

    def saved(self) -> tuple[Tensor | None, ...]:
        """The inputs for `save_for_backward` of a node that sends no gradient to them."""
        return tuple(None if one is None else one.detach() for one in self.inputs)


def note_origin(tensor: Tensor, origin: Origin, notes: weakref.WeakSet[Origin]) -> Tensor:
    """Put a note on a tensor.

    Args:
        tensor: Just made.
        origin: Of it.
        notes: Where the note is entered, so that `forget` finds it.
    """
    origin.version = tensor._version  # pyright: ignore[reportPrivateUsage]  # torch has no other way to ask
    origin.hooks = _saved_tensor_hooks()
    setattr(tensor, _NOTE, origin)
    notes.add(origin)
    return tensor


def origin_of(tensor: Tensor) -> Origin | None:
    """Where a tensor came from, if that is known and still true."""
    origin: Origin | None = getattr(tensor, _NOTE, None)
    if origin is None or not origin.inputs:
        return None
    if origin.version != tensor._version or origin.hooks != _saved_tensor_hooks():  # pyright: ignore[reportPrivateUsage]
        return None
    return origin


def forget(notes: weakref.WeakSet[Origin]) -> None:
    """Let go of all inputs: a model's output outlives its graph and must not hold them."""
    for origin in notes:
        origin.inputs = ()
    notes.clear()


def _saved_tensor_hooks() -> Any:
    return cast(Any, torch)._C._autograd._top_saved_tensors_default_hooks(True)
