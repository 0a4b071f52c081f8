"""What each module computes, holds and moves, at inference of one sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Literal

from efftrain.graph.trace import Graph
from efftrain.profiling.activations import Activations
from efftrain.profiling.step_count import StepCount

Bound = Literal["compute", "memory"]


@dataclass(frozen=True)
class Layer:
    """A module that computes something itself; what its children compute is theirs.

    Attributes:
        path: Its first name in the model; "" is the model itself.
        type: Its class.
        input_shape: Of the first activation that it reads.
        output_shape: Of the last tensor that it makes.
        params: Elements of its own parameters, and of those of children that it uses without
            calling them (the output projection of `nn.MultiheadAttention`).
        trainable: Of these, those that train.
        macs: Multiply-accumulates.
        flops: 2 x MACs and all other floating point operations.
        activations: Elements that it adds to the total.
        bytes_moved: Of the tensors that its operations read and write; nothing is cached.
        bound: What limits it on a machine: "compute" or "memory"; None where no machine was given.
        predicted_ms: How long it takes there, as predicted; None where no machine was given.
    """

    path: str
    type: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    params: int
    trainable: int
    macs: int
    flops: int
    activations: int
    bytes_moved: int
    bound: Bound | None = None
    predicted_ms: float | None = None

    @property
    def intensity(self) -> float | None:
        """FLOP for each byte; None where nothing is moved."""
        return self.flops / self.bytes_moved if self.bytes_moved else None

    def to_dict(self) -> dict[str, Any]:
        """The layer under its JSON keys; an intensity that does not exist is left out."""
        found: dict[str, Any] = {
            "path": self.path,
            "type": self.type,
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            "params": self.params,
            "trainable": self.trainable,
            "macs": self.macs,
            "flops": self.flops,
            "activations": self.activations,
            "bytes": self.bytes_moved,
        }
        if self.intensity is not None:
            found["intensity"] = self.intensity
        if self.bound is not None:
            found["bound"] = self.bound
        if self.predicted_ms is not None:
            found["predicted_ms"] = self.predicted_ms
        return found


def find_layers(
    graph: Graph,
    count: StepCount,
    activations: Activations,
    parameters: dict[str, tuple[int, int]],
) -> tuple[Layer, ...]:
    """Put together what was found out about each module.

    Args:
        graph: Of one inference pass.
        count: Of the same pass.
        activations: Of the same pass.
        parameters: Elements of each module's own parameters and of those that train, by path.

    Returns:
        The modules that run operations of their own, in the order in which they first do.
    """
    first: dict[str, tuple[int, ...]] = {}
    last: dict[str, tuple[int, ...]] = {}
    for operation in graph.operations:
        data = [graph.values[i] for i in operation.inputs if graph.values[i].data]
        if data and operation.outputs:
            first.setdefault(operation.path, data[0].shape)
            last[operation.path] = graph.values[operation.outputs[0]].shape
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for entry in count.entries:
        for position, value in enumerate((entry.macs, entry.flops, entry.bytes_moved)):
            sums[entry.path][position] += value
    owned = _with_those_not_called(parameters, first)
    return tuple(
        Layer(
            path=path,
            type=graph.types[path],
            input_shape=first[path],
            output_shape=last[path],
            params=owned.get(path, (0, 0))[0],
            trainable=owned.get(path, (0, 0))[1],
            macs=sums[path][0],
            flops=sums[path][1],
            activations=activations.by_module.get(path, 0),
            bytes_moved=sums[path][2],
        )
        for path in first
    )


def _with_those_not_called(
    parameters: dict[str, tuple[int, int]], running: Container[str]
) -> dict[str, tuple[int, int]]:
    """Give the parameters of modules that run nothing to the nearest one above them that does."""
    owned: dict[str, tuple[int, int]] = {}
    for path, (own, trained) in parameters.items():
        while path and path not in running:
            path = path.rpartition(".")[0]
        before = owned.get(path, (0, 0))
        owned[path] = before[0] + own, before[1] + trained
    return owned
