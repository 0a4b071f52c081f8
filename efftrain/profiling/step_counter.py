"""Say for each operator call of a step what it costs, and to which module and phase it belongs."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from efftrain.graph.autograd_node import (
    in_backward,
    is_computing_again,
    newest_node,
    running_node,
)
from efftrain.graph.observer import Call, storage_key
from efftrain.graph.rehearsal import Rehearsal
from efftrain.profiling.attention import ATTENTION, ATTENTION_BACKWARD, recomputed_scores
from efftrain.profiling.elementwise import elementwise_operations
from efftrain.profiling.products import PRODUCTS, convolution_backward
from efftrain.profiling.recurrent import RECURRENT, RECURRENT_BACKWARD
from efftrain.profiling.step_count import Phase, StepCount, Tally

MACS = {**PRODUCTS, **ATTENTION, **RECURRENT}
# Gradients of layers, by the input and by the weights; attention has no weights.
GRADIENTS = {"convolution_backward": convolution_backward, **RECURRENT_BACKWARD}


class StepCounter:
    """Listens to a step's calls and says for each where it belongs.

    A call in backward belongs to the module whose forward call made the autograd node that is
    running; both are found by the node's sequence number, which forward reads just after the node
    is made.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        """Know the weights; `optimizing` is set by who runs the step, when the optimizer's turn comes."""
        self.optimizing = False
        self._rehearsal = rehearsal
        self._tally = Tally()
        self._uncounted: dict[str, int] = {}
        self._counted = 0
        self._path_of_node: dict[int, str] = {}
        self._operands_of_node: dict[int, tuple[bool, bool]] = {}
        model = rehearsal.model
        # Memory of parameters and of what is made from them alone (a cast, a transpose, B @ A).
        tensors = [*model.parameters(), *model.buffers()]
        self._weights = {storage_key(tensor) for tensor in tensors if _has_storage(tensor)}

    def on_call(self, call: Call) -> None:
        """Count one call."""
        if call.operator.view:
            return
        if self.optimizing:
            self._enter(call, "", "optimizer")
            return
        if not in_backward():
            self._on_forward(call, "forward")
        elif torch.is_grad_enabled():  # only what backward runs again has them enabled
            self._on_forward(call, "recompute")
        elif is_computing_again():
            self._enter(call, self._path_of_node.get(running_node(), ""), "recompute")
        else:
            self._on_backward(call)

    def result(self) -> StepCount:
        """What was counted so far."""
        return StepCount(
            entries=self._tally.entries(),
            uncounted=self._uncounted,
            counted_elements=self._counted,
            values=self._rehearsal.values,
        )

    def _on_forward(self, call: Call, phase: Phase) -> None:
        path = self._rehearsal.stack.path
        node = newest_node()
        from_weights = [storage_key(t) in self._weights for t in call.inputs if _has_storage(t)]
        if from_weights and all(from_weights):
            for tensor in call.outputs:
                self._add_weight(tensor)
        self._path_of_node.setdefault(node, path)
        if call.operator.name in MACS or node not in self._operands_of_node:
            data, weight = self._operands_of_node.get(node, (False, False))
            self._operands_of_node[node] = (
                data or not all(from_weights),
                weight or any(from_weights),
            )
        self._enter(call, path, phase)

    def _enter(self, call: Call, path: str, phase: Phase) -> None:
        """Enter a call that belongs to one phase as a whole."""
        macs, other = _cost(call)
        self._add(call, path, phase, macs, sum(other) if isinstance(other, tuple) else other)

    def _on_backward(self, call: Call) -> None:
        node = running_node()
        path = self._path_of_node.get(node, "")
        name = call.operator.name
        if name in GRADIENTS:
            inputs, weights = GRADIENTS[name](call)
            self._split(call, path, (inputs, 0), (weights, _bias_gradient(call)))
        elif name in ATTENTION_BACKWARD:
            self._add(call, path, "backward_inputs", ATTENTION_BACKWARD[name](call), 0)
            self._add(call, path, "recompute", recomputed_scores(call), 0, again=True)
        else:
            macs, other = _cost(call)
            if isinstance(other, tuple):
                self._split(call, path, (0, other[0]), (0, other[1]))
            else:
                self._add(call, path, self._gradient_of(call, node), macs, other)

    def _split(
        self, call: Call, path: str, inputs: tuple[int, int], weights: tuple[int, int]
    ) -> None:
        """A call that makes both gradients of a layer, of which either may not be asked for."""
        if any(inputs):
            self._add(call, path, "backward_inputs", *inputs)
        if any(weights) or not any(inputs):
            self._add(call, path, "backward_weights", *weights, again=any(inputs))

    def _add_weight(self, tensor: Tensor) -> None:
        memory = storage_key(tensor)
        if _has_storage(tensor) and memory not in self._weights:
            self._weights.add(memory)
            # the name is given to other memory once this is free
            weakref.finalize(tensor.untyped_storage(), self._weights.discard, memory)

    def _gradient_of(self, call: Call, node: int) -> Phase:
        """Which gradient a product in backward makes, told from the other operand.

        x @ w has the gradients g @ w' for x and x' @ g for w. Where forward had no weight there is
        no gradient for one, and where it had nothing else (B @ A of an adapter) all are for weights.
        """
        data, weight = self._operands_of_node.get(node, (True, False))
        if not weight:
            return "backward_inputs"
        if not data:
            return "backward_weights"
        uses_weight = any(storage_key(t) in self._weights for t in call.inputs if _has_storage(t))
        return "backward_inputs" if uses_weight else "backward_weights"

    def _add(
        self,
        call: Call,
        path: str,
        phase: Phase,
        macs: int,
        other: int | None,
        again: bool = False,
    ) -> None:
        """Enter a call, or (`again`) the second part of one that is entered already."""
        operator = call.operator.name
        if other is None:
            produced = sum(tensor.numel() for tensor in call.outputs)
            self._uncounted[operator] = self._uncounted.get(operator, 0) + produced
            other = 0
        elif (macs or other) and not again:
            self._counted += sum(tensor.numel() for tensor in call.outputs)
        tensors = [*call.inputs, *call.outputs]
        floats = any(t.is_floating_point() or t.is_complex() for t in tensors) or not tensors
        moved = 0 if again else sum(t.numel() * t.element_size() for t in tensors)
        self._tally.add(path, operator, phase, _dtype(tensors), macs, other, floats, moved)


def _cost(call: Call) -> tuple[int, int | tuple[int, int] | None]:
    """Multiply-accumulates and other operations; None for the latter where neither is known."""
    formula = MACS.get(call.operator.name)
    if formula is not None:
        return formula(call), 0
    return 0, elementwise_operations(call)


def _dtype(tensors: list[Tensor]) -> str:
    """Of the first tensor that holds no integers, the inputs first; else of the first."""
    floating = (t for t in tensors if t.is_floating_point() or t.is_complex())
    first = next(floating, tensors[0] if tensors else None)
    return "" if first is None else str(first.dtype).removeprefix("torch.")


def _bias_gradient(call: Call) -> int:
    """A convolution's bias gradient adds up the incoming one."""
    if call.operator.name != "convolution_backward":
        return 0
    mask = call.args[10] if len(call.args) > 10 else call.kwargs["output_mask"]
    return call.args[0].numel() * bool(mask[2])


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided
