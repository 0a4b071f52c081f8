"""How much memory is held at each moment of a step."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from efftrain.graph.observer import Call, storage_key


class LiveMemory:
    """Adds up the memory of every tensor that a step makes, for as long as anything holds it.

    Scratch space inside a kernel does not show: no tensor holds it.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        """Know the tensors that are there before the step and stay; they are not counted."""
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known = {storage_key(t) for t in there if t.layout is torch.strided}

    def on_call(self, call: Call) -> None:
        """Enter what a call has made."""
        if call.operator.view:
            return
        for tensor in call.outputs:
            if tensor.layout is torch.strided:
                self._enter(tensor)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _enter(self, tensor: Tensor) -> None:
        memory = storage_key(tensor)
        if memory in self._known:
            return
        storage = tensor.untyped_storage()
        held = storage.nbytes()
        self._known.add(memory)
        self.live_bytes += held
        weakref.finalize(storage, self._leave, memory, held)

    def _leave(self, memory: int, held: int) -> None:
        self._known.discard(memory)
        self.live_bytes -= held


def memory_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors, memory that several share counted once."""
    distinct: dict[int, int] = {}
    for tensor in tensors:
        if tensor.layout is torch.strided:
            distinct[storage_key(tensor)] = tensor.untyped_storage().nbytes()
    return sum(distinct.values())
