"""How much memory is held at each moment of a step."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from efftrain.graph.observer import Call, storage_key
from efftrain.profiling.scratch import scratch_bytes
from efftrain.profiling.storage_bytes import StorageBytes


class Peaks(NamedTuple):
    """The most that was held, in bytes.

    Attributes:
        held: With what kernels need inside.
        tensors: By tensors alone.
        without_gradients: As `held`, the parameters' gradients left out.
    """

    held: int
    tensors: int
    without_gradients: int

    def above(self, more_bytes: int) -> Peaks:
        """The peaks where so much more was there all the time."""
        return Peaks(*(peak + more_bytes for peak in self))

    def at_least(self, other: Peaks) -> Peaks:
        """The higher of each."""
        return Peaks(*map(max, self, other))


class LiveMemory:
    """Adds up the memory of every tensor that a step makes, for as long as anything holds it.

    Attributes:
        live_bytes: Held now.
        peaks: Held at most so far.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        """Know the tensors that are there before the step and stay; they are not counted."""
        self.live_bytes = 0
        self.peaks = Peaks(0, 0, 0)
        self._gradients: set[int] = set()
        self._gradient_bytes = 0
        self._storages = StorageBytes()
        self._held = {storage_key(t): 0 for t in there if t.layout is torch.strided}

    def on_call(self, call: Call) -> None:
        """Enter what a call has made."""
        if call.operator.view:
            return
        self._storages.on_call(call)
        for tensor in call.outputs:
            if tensor.layout is torch.strided:
                self._enter(tensor)
        held = self.live_bytes + scratch_bytes(call)
        now = Peaks(held, self.live_bytes, held - self._gradient_bytes)
        self.peaks = self.peaks.at_least(now)

    def follow_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See from now on when a parameter gets its gradient."""
        for parameter in parameters:
            if parameter.requires_grad:
                cast(Any, parameter).register_post_accumulate_grad_hook(self._on_gradient)

    def _on_gradient(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None or gradient.layout is not torch.strided:
            return
        memory = storage_key(gradient)
        if memory not in self._gradients and memory in self._held:
            self._gradients.add(memory)
            self._gradient_bytes += self._held[memory]

    def _enter(self, tensor: Tensor) -> None:
        memory = storage_key(tensor)
        if memory in self._held:
            return
        held = self._storages.of(tensor)
        self._held[memory] = held
        self.live_bytes += held
        weakref.finalize(tensor.untyped_storage(), self._leave, memory)

    def _leave(self, memory: int) -> None:
        held = self._held.pop(memory)
        self.live_bytes -= held
        if memory in self._gradients:
            self._gradients.remove(memory)
            self._gradient_bytes -= held
