"""How a tensor can be made again from tensors that are kept anyway.

A norm keeps its input for its own gradient. Whatever follows it can make the norm's output again from
that input, and need not keep it. So the output carries a note of where it came from.

A note is believed only while it is certain: nothing has written to the tensor since, or to what it is
made from, and the same saved-tensor hooks are in force (inside a checkpointed region, forward and
recomputation must keep the same number of tensors, whatever is known outside).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from efftrain.graph.autograd_node import computing_again
from efftrain.memory.kernels import Activation

Kept: TypeAlias = "Sequence[Tensor | None]"
Rebuild: TypeAlias = Callable[[Kept], Tensor]

_NOTE = "_efftrain_origin"


@dataclass(eq=False)
class Origin:
    """Where a tensor came from.

    Attributes:
        kind: `batch_norm` and `activation` have backward passes of their own with what follows.
        inputs: Tensors that autograd keeps anyway, or that are kept in place of larger ones.
        rebuild: Makes the tensor again, without gradient, from what was saved of `inputs`. It holds
            none of them.
        details: What the kind's own backward passes need to know besides.
        memos: Of the products that `rebuild` computes.
    """

    kind: Literal["batch_norm", "norm", "activation", "product"]
    inputs: tuple[Tensor | None, ...]
    rebuild: Rebuild
    details: Any = None
    memos: tuple[Memo, ...] = ()
    version: int = 0
    read: tuple[int, ...] = ()
    hooks: Any = None

    def versions(self) -> tuple[int, ...]:
        """How often each tensor that it is made from was written to."""
        made_from = [*self.inputs, self.details.input if isinstance(self.details, Gate) else None]
        return tuple(-1 if one is None else one._version for one in made_from)  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True)
class Gate:
    """Details of an activation whose input is a tensor that stands for itself, as in SwiGLU.

    Attributes:
        input: Of the activation, with its graph.
        act: Which, among the kernels.
        origin: Of the input.
    """

    input: Tensor
    act: Activation
    origin: Origin | None


class Memo:
    """A product that was computed again, held while another node of backward still needs it."""

    def __init__(self) -> None:
        """Nobody needs it yet."""
        self.users: weakref.WeakSet[Use] = weakref.WeakSet()
        self.value: Tensor | None = None

    def recall(self, compute: Callable[[], Tensor]) -> Tensor:
        """The product: the one that is held, or computed."""
        value = compute() if self.value is None else self.value
        self.value = value if len(self.users) else None
        return value


class Reader:
    """The way to a tensor from what was saved in its place: itself, or what it is made from.

    Attributes:
        count: How many tensors stand for it.
    """

    def __init__(self, origin: Origin | None) -> None:
        """Know the way; hold no tensor."""
        self._rebuild = None if origin is None else origin.rebuild
        self.count = 1 if origin is None else len(origin.inputs)

    def get(self, kept: Kept) -> Tensor:
        """The tensor, from the first `count` of what was saved."""
        if self._rebuild is None:
            return cast(Tensor, kept[0])
        with computing_again():
            return self._rebuild(kept[: self.count])


class Use(Reader):
    """One node's way to a tensor.

    Attributes:
        tensors: For `save_for_backward`; to be taken off before the node is left.
    """

    def __init__(self, tensor: Tensor | None, origin: Origin | None = None) -> None:
        """Enter the node among those that need what is computed on the way."""
        super().__init__(origin)
        self._memos = () if origin is None else origin.memos
        for memo in self._memos:
            memo.users.add(self)
        given = (tensor,) if origin is None else origin.inputs
        # without their graph: a node sends no gradient to what it only reads
        self.tensors = tuple(None if one is None else one.detach() for one in given)

    def take(self) -> tuple[Tensor | None, ...]:
        """The tensors, once: what a node keeps goes through `save_for_backward` alone."""
        tensors, self.tensors = self.tensors, ()
        return tensors

    def get(self, kept: Kept) -> Tensor:
        """The tensor, for the last time that this node asks for it."""
        for memo in self._memos:
            memo.users.discard(self)
        return super().get(kept)


def note_origin(tensor: Tensor, origin: Origin, notes: weakref.WeakSet[Origin]) -> Tensor:
    """Put a note on a tensor.

    Args:
        tensor: Just made.
        origin: Of it.
        notes: Where the note is entered, so that `forget` finds it.
    """
    origin.version = tensor._version  # pyright: ignore[reportPrivateUsage]  # torch has no other way to ask
    origin.read = origin.versions()
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
    if origin.read != origin.versions():
        return None
    return origin


def forget(notes: weakref.WeakSet[Origin]) -> None:
    """Let go of all inputs: a model's output outlives its graph and must not hold them."""
    for origin in notes:
        origin.inputs, origin.details = (), None
    notes.clear()


def _saved_tensor_hooks() -> Any:
    return cast(Any, torch)._C._autograd._top_saved_tensors_default_hooks(True)
