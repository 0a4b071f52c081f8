"""How each operation of a forward pass changes what its positions see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from efftrain.graph.trace import Graph, Operation, Reference
from efftrain.profiling.field import Field, FieldState, merge
from efftrain.profiling.products import PRODUCTS

_CONVOLUTIONS = frozenset(name for name in PRODUCTS if "conv" in name)
_POOLS = frozenset(["max_pool2d_with_indices", "avg_pool2d"])
_POOLS_TO_SIZE = frozenset(["_adaptive_avg_pool2d", "adaptive_max_pool2d"])
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
        shape: Channels, height and width of its result.
    """

    path: str
    operator: str
    size: int
    stride: int
    shape: tuple[int, int, int]

    def to_dict(self) -> dict[str, Any]:
        """The layer under its JSON keys."""
        return {
            "path": self.path,
            "operator": self.operator,
            "size": self.size,
            "stride": self.stride,
            "shape": list(self.shape),
        }


class FieldWalk:
    """Carries fields from operation to operation.

    Attributes:
        layers: Convolutions and pools so far.
        unknown: Operators that move positions in a way that is not understood, in order.
        pooled: Whether a global pool was brought back into a tensor that has positions.
        attention: Whether attention mixed all positions.
        last: What the last tensor with positions sees; None before the first.
        number: Number of the operation that made it.
    """

    def __init__(self, graph: Graph) -> None:
        """Start at the graph's images."""
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
        """Find out what an operation's results see."""
        states: list[FieldState] = [self.state[i] for i in operation.inputs if i in self.state]
        if not states or not operation.outputs:  # `item()` gives a number
            return
        rule = _RULES.get(operation.operator.name, _other)
        result = rule(self, operation, states)
        for index in operation.outputs:
            self.state[index] = result
        # a pool to the size that is there already changes nothing; on a wider image it would
        idle = operation.operator.name in _POOLS_TO_SIZE and result is states[0]
        if isinstance(result, Field) and not operation.operator.view and not idle:
            self.last, self.number = result, number

    def shape(self, operation: Operation, position: int) -> tuple[int, ...]:
        """Of the tensor at a position of the arguments."""
        argument = operation.arguments[position]
        if not isinstance(argument, Reference):
            raise TypeError(f"{operation.operator.name} has no tensor at position {position}")
        return self.graph.values[argument.index].shape

    def result_shape(self, operation: Operation) -> tuple[int, ...]:
        """Of the first result."""
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


def _window(walk: FieldWalk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
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
    channels, height, width = shape[-3:]
    layer = LayerField(operation.path, name, made.size, made.jump, (channels, height, width))
    walk.layers.append(layer)
    return made


def _pool_to_size(
    walk: FieldWalk, operation: Operation, states: Sequence[FieldState]
) -> FieldState:
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


def _reduce(walk: FieldWalk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    """A mean or sum: over channels it keeps positions, over positions it is a global pool."""
    state = states[0]
    if not isinstance(state, Field):
        return state
    before = walk.shape(operation, 0)
    dims = operation.arguments[1] if len(operation.arguments) > 1 else range(len(before))
    axes = {dim % len(before) for dim in (dims or range(len(before)))}
    channel = 1 if before[1:2] == (state.channels,) and before[-1] == state.width else -1
    return state if axes == {channel % len(before)} else "pooled"


def _pad(walk: FieldWalk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    state = states[0]
    if not isinstance(state, Field):
        return state
    shape, before = walk.result_shape(operation), walk.shape(operation, 0)
    if before[-1] != state.width:  # channels last: the width is the second pair
        return state if not any(operation.arguments[1]) else _other(walk, operation, states)
    return state.shifted(-operation.arguments[1][0]).shaped(shape)


def _unshuffle(walk: FieldWalk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    state, side = states[0], operation.arguments[1]
    if not isinstance(state, Field):
        return state
    return state.through_window(side, side, 0, 1).shaped(walk.result_shape(operation))


def _product(walk: FieldWalk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
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


def _attention(walk: FieldWalk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    fields = [state for state in states if isinstance(state, Field)]
    if not fields:
        return states[0]
    longest = max(size for i in operation.inputs for size in walk.graph.values[i].shape[-2:])
    if longest < fields[0].positions:  # inside windows
        walk.unknown[operation.operator.name] = None
        return fields[0]
    walk.attention = True
    return "attention"


def _grouped(walk: FieldWalk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
    """GroupNorm's statistics are those of all positions."""
    walk.pooled = walk.pooled or isinstance(states[0], Field)
    return states[0]


def _other(walk: FieldWalk, operation: Operation, states: Sequence[FieldState]) -> FieldState:
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


_Rule = Callable[[FieldWalk, Operation, Sequence[FieldState]], FieldState]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_CONVOLUTIONS | _POOLS, _window),
    **dict.fromkeys(_POOLS_TO_SIZE, _pool_to_size),
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
