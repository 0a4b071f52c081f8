"""How many pixels an element of the last feature map depends on, from the graph of a forward pass.

Along the width, the last axis of an image [N, C, H, W]. Each tensor of the pass carries the pixels
that its first position sees and the step from one position to the next; the interval arithmetic is
that of Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks"
(Distill, 2019). `nan_probe` checks the result by running the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from efftrain.graph.trace import Graph, Operation, Reference, trace
from efftrain.profiling.field import Field, FieldState, merge
from efftrain.profiling.products import PRODUCTS

Status = Literal["complete", "partial", "unavailable"]

_CONVOLUTIONS = frozenset(name for name in PRODUCTS if "conv" in name)
_POOLS = frozenset(["max_pool2d_with_indices", "avg_pool2d"])
# What keeps every position where it is, besides pointwise operators.
_IN_PLACE = frozenset(
    ["native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "clone",
     "_to_copy", "copy_", "_softmax", "native_layer_norm", "_fused_rms_norm", "native_dropout",
     "cat", "stack", "masked_fill", "where", "_unsafe_view", "pixel_shuffle"]
)  # fmt: skip


@dataclass(frozen=True)
class LayerField:
    """What one position of a layer's result sees.

    Attributes:
        path: The layer.
        operator: Such as `convolution`.
        size: Pixels of the input.
        stride: Pixels from one position to the next.
    """

    path: str
    operator: str
    size: int
    stride: int


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of the last spatial feature map.

    Attributes:
        size: Pixels along the width; None where attention mixes all positions, or none is known.
        stride: Pixels between two positions of the last feature map.
        mixes_globally: Whether a position also depends on all others, through attention or through
            a global pool that is multiplied back in (squeeze and excitation); `size` leaves the
            pool out.
        layers: Convolutions and pools, in order.
        stride_schedule: Each layer at which the stride changes, and the stride from there on.
        unknown: Operators that move positions in a way that is not understood.
        status: "partial" where `unknown` is not empty, "unavailable" for a model without a map.
        operation: Number of the operation that makes the last feature map; -1 without one.
        start: First pixel that its first position sees, negative in the padding.
        verified: Whether running the model confirmed it; None where that was not tried.
    """

    size: int | None
    stride: int | None
    mixes_globally: bool
    layers: tuple[LayerField, ...]
    stride_schedule: tuple[tuple[str, int], ...]
    unknown: tuple[str, ...]
    status: Status
    operation: int
    start: int
    verified: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Under the JSON keys; what is not known is left out."""
        found: dict[str, Any] = {"status": self.status}
        if self.status != "unavailable":
            found["global"] = self.mixes_globally
        if self.size is not None:
            found["size"] = self.size
        elif self.mixes_globally and (self.status == "complete" or self.verified):
            found["size"] = "global"
        if self.stride is not None:
            found["stride"] = self.stride
            found["stride_schedule"] = [list(step) for step in self.stride_schedule]
        if self.verified is not None:
            found["verified"] = self.verified
        return found


def find_receptive_field(model: nn.Module, batch: Any) -> ReceptiveField:
    """Find the receptive field of a model's last spatial feature map.

    Args:
        model: Meta device is enough; taken in eval mode, left in its own.
        batch: [N, C, H, W], larger than the smallest image that the model takes.

    Returns:
        The field; "unavailable" where the input is no image.

    Raises:
        ConfigError: The model asks for values and has none.
    """
    return receptive_field_of(trace(model, batch))


def receptive_field_of(graph: Graph) -> ReceptiveField:
    """Find the receptive field in a traced forward pass; see `find_receptive_field`."""
    walk = _Walk(graph)
    for number, operation in enumerate(graph.operations):
        walk.visit(number, operation)
    last = walk.last
    unknown = tuple(walk.unknown)
    if last is None:
        return ReceptiveField(None, None, False, (), (), unknown, "unavailable", -1, 0)
    known = not unknown and not walk.attention
    return ReceptiveField(
        size=last.size if known else None,
        stride=last.jump,
        mixes_globally=walk.attention or walk.pooled,
        layers=tuple(walk.layers),
        stride_schedule=_schedule(walk.layers),
        unknown=unknown,
        status="partial" if unknown else "complete",
        operation=walk.number,
        start=last.start,
    )


def _schedule(layers: list[LayerField]) -> tuple[tuple[str, int], ...]:
    changes: list[tuple[str, int]] = []
    for layer in layers:
        if layer.stride > (changes[-1][1] if changes else 1):
            changes.append((layer.path, layer.stride))
    return tuple(changes)


class _Walk:
    """Carries fields from operation to operation."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.state: dict[int, FieldState] = {}
        self.layers: list[LayerField] = []
        self.unknown: dict[str, None] = {}
        self.pooled = self.attention = False
        self.last: Field | None = None
        self.number = -1
        for index in graph.inputs:
            shape = graph.values[index].shape
            if len(shape) == 4:
                self.state[index] = Field(0, 0, 1, shape[2] * shape[3], shape[1], shape[3])

    def visit(self, number: int, operation: Operation) -> None:
        states: list[FieldState] = [self.state[i] for i in operation.inputs if i in self.state]
        if not states:
            return
        rule = _RULES.get(operation.operator.name, _other)
        result = rule(self, operation, states)
        for index in operation.outputs:
            self.state[index] = result
        if isinstance(result, Field) and not operation.operator.view:
            self.last, self.number = result, number

    def shape(self, operation: Operation, position: int) -> tuple[int, ...]:
        argument = operation.arguments[position]
        if not isinstance(argument, Reference):
            raise TypeError(f"{operation.operator.name} has no tensor at position {position}")
        return self.graph.values[argument.index].shape

    def result_shape(self, operation: Operation) -> tuple[int, ...]:
        return self.graph.values[operation.outputs[0]].shape

    def join(self, operation: Operation, states: Sequence[FieldState]) -> FieldState:
        """Several tensors as one, and what that says of the model."""
        fields = {state.jump for state in states if isinstance(state, Field)}
        if len(fields) > 1:
            self.unknown[operation.operator.name] = None
        result = merge(states)
        if isinstance(result, Field) and "pooled" in states:
            self.pooled = True
        return result


def _window(walk: _Walk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    """Convolutions and pools."""
    state = states[0]
    if not isinstance(state, Field):
        return state
    name, arguments = operation.operator.name, operation.arguments
    if name in _CONVOLUTIONS:
        kernel, dilation = walk.shape(operation, 1)[-1], arguments[5][-1]
        stride, padding = arguments[3][-1], arguments[4][-1]
        if arguments[6]:  # transposed: positions come closer together
            walk.unknown[name] = None
    else:
        kernel = arguments[1][-1]
        stride = arguments[2][-1] if len(arguments) > 2 and arguments[2] else kernel
        padding = arguments[3][-1] if len(arguments) > 3 else 0
        dilation = arguments[4][-1] if name.startswith("max") and len(arguments) > 4 else 1
    shape = walk.result_shape(operation)
    made = state.through_window(kernel, stride, padding, dilation).shaped(shape)
    walk.layers.append(LayerField(operation.path, name, made.size, made.jump))
    return made


def _pool_to_size(walk: _Walk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    """Adaptive pooling: global for one position, nothing for as many as there are."""
    state, shape = states[0], walk.result_shape(operation)
    if not isinstance(state, Field) or shape[-1] == state.width:
        return state
    if shape[-1] == shape[-2] == 1:
        return "pooled"
    if state.width % shape[-1]:
        walk.unknown[operation.operator.name] = None
        return state
    side = state.width // shape[-1]
    return state.through_window(side, side, 0, 1).shaped(shape)


def _reduce(walk: _Walk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    """A mean or sum: over channels it keeps positions, over positions it is a global pool."""
    state = states[0]
    if not isinstance(state, Field):
        return state
    before = walk.shape(operation, 0)
    dims = operation.arguments[1] if len(operation.arguments) > 1 else range(len(before))
    axes = {dim % len(before) for dim in (dims or range(len(before)))}
    channel = 1 if before[1:2] == (state.channels,) and before[-1] == state.width else -1
    return state if axes == {channel % len(before)} else "pooled"


def _pad(walk: _Walk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    state = states[0]
    if not isinstance(state, Field):
        return state
    shape, before = walk.result_shape(operation), walk.shape(operation, 0)
    if before[-1] != state.width:  # channels last: the width is the second pair
        return state if not any(operation.arguments[1]) else _other(walk, operation, states)
    return state.shifted(-operation.arguments[1][0]).shaped(shape)


def _unshuffle(walk: _Walk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    state, side = states[0], operation.arguments[1]
    if not isinstance(state, Field):
        return state
    return state.through_window(side, side, 0, 1).shaped(walk.result_shape(operation))


def _product(walk: _Walk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    """A linear layer over channels keeps positions; any other product mixes them."""
    first = next(i for i in operation.inputs if i in walk.state)
    state, shape = walk.state[first], walk.graph.values[first].shape
    if len(states) > 1:  # two tensors of the pass: scores, or scores times values
        return _attention(walk, operation, states)
    if not isinstance(state, Field):
        return state
    if shape[-1] == state.channels or state.positions == 1:
        width = walk.result_shape(operation)[-1]
        return Field(state.start, state.end, state.jump, state.positions, width, state.width)
    return "pooled"  # all positions flattened into one vector, or a layer over tokens


def _attention(walk: _Walk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    fields = [state for state in states if isinstance(state, Field)]
    if not fields:
        return states[0]
    longest = max(size for i in operation.inputs for size in walk.graph.values[i].shape[-2:])
    if longest < fields[0].positions:  # inside windows
        walk.unknown[operation.operator.name] = None
        return fields[0]
    walk.attention = True
    return "attention"


def _grouped(walk: _Walk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    """GroupNorm's statistics are those of all positions."""
    walk.pooled = walk.pooled or isinstance(states[0], Field)
    return states[0]


def _other(walk: _Walk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    operator, shape = operation.operator, walk.result_shape(operation)
    if not (operator.view or operator.pointwise or operator.name in _IN_PLACE):
        walk.unknown[operator.name] = None
    result = walk.join(operation, states)
    if operator.name == "slice" and len(operation.arguments) > 4 and operation.arguments[4] != 1:
        walk.unknown[operator.name] = None
    if operator.name in ("cat", "split", "split_with_sizes", "chunk", "slice") and isinstance(
        result, Field
    ):
        return result.shaped(shape)
    return result


_Rule = Callable[[_Walk, Operation, Sequence[FieldState]], FieldState]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_CONVOLUTIONS | _POOLS, _window),
    **dict.fromkeys(["_adaptive_avg_pool2d", "adaptive_max_pool2d"], _pool_to_size),
    **dict.fromkeys(["mean", "sum", "amax", "var", "var_mean"], _reduce),
    **dict.fromkeys(["constant_pad_nd", "reflection_pad2d", "replication_pad2d"], _pad),
    **dict.fromkeys(["mm", "addmm", "bmm", "baddbmm", "linear"], _product),
    **dict.fromkeys(
        ["_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
         "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"],
        _attention,
    ),
    "pixel_unshuffle": _unshuffle,
    "native_group_norm": _grouped,
}  # fmt: skip
