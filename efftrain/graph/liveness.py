"""When each tensor of a forward pass is alive, with and without the fusions of inference engines."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from efftrain.graph.trace import Graph, Operation

# Besides pointwise operators: each result element stands where one of the input's stood, so that an
# engine writes it there.
_NAMES = """
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
    _batch_norm_no_update native_layer_norm native_group_norm _fused_rms_norm _softmax _safe_softmax
    _log_softmax native_dropout clone _to_copy copy_ contiguous masked_fill where fill_ zero_
"""
_IN_STEP = frozenset(_NAMES.split())
_REDUCTIONS = frozenset(["mean", "sum", "var", "var_mean", "std", "linalg_vector_norm", "amax"])


@dataclass
class Buffer:
    """Memory of the pass that depends on its input.

    Attributes:
        elements: Of the tensor that was put there first.
        path: Module that made it; "input" for the model's input.
        operator: That made it; "" for the model's input.
        first: Number of the step that makes it; -1 for the model's input.
        last: Number of the last step that reads it.
    """

    elements: int
    path: str
    operator: str
    first: int
    last: int


@dataclass
class Step:
    """One operation; or, where layers are fused, all those of one norm's or activation's call.

    Attributes:
        path: Module that ran it.
        operator: The operator, or the class of the module.
        adds: Elements of a residual sum: two tensors of the pass, added element by element; else 0.
    """

    path: str
    operator: str
    adds: int


@dataclass(frozen=True)
class Schedule:
    """The steps of a forward pass and the memory that it needs.

    Attributes:
        steps: In order.
        buffers: In the order in which they are made, the inputs first.
    """

    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]

    def alive(self, step: int) -> list[Buffer]:
        """Buffers that a step reads or writes, or that a later one still needs."""
        return [b for b in self.buffers if b.first <= step <= b.last]

    def peak(self) -> int:
        """The number of the step at which most elements are alive; the first of several."""
        change = [0] * (len(self.steps) + 1)
        for buffer in self.buffers:
            change[max(buffer.first, 0)] += buffer.elements
            change[min(buffer.last, len(self.steps) - 1) + 1] -= buffer.elements
        best, most, now = 0, 0, 0
        for step in range(len(self.steps)):
            now += change[step]
            if now > most:
                best, most = step, now
        return best


def schedule(graph: Graph, *, fused: bool = True) -> Schedule:
    """Find out when each tensor is alive.

    Args:
        graph: A traced forward pass.
        fused: Whether a step that works element by element (a norm, an activation, a sum) writes
            over an input of its size that no later step reads, as engines do. The operations of a
            norm's or activation's module are one step then. Otherwise each operation makes a
            tensor, unless it says itself that it works in place.

    Returns:
        Steps and buffers. Views belong to what they look at; weights are left out.
    """
    groups = _groups(graph, fused)
    read_last = _last_reads(graph, groups)
    buffers = {
        index: Buffer(graph.values[index].elements, "input", "", -1, read_last.get(index, -1))
        for index in graph.inputs
        if graph.values[index].memory == index
    }
    steps: list[Step] = []
    for number, group in enumerate(groups):
        reads = {
            id(buffers[m]): buffers[m]
            for m in (graph.values[i].memory for op in group for i in op.inputs)
            if m in buffers
        }
        in_step = len(group) > 1 or (fused and _in_step(group[0]))
        for value in _made(graph, group):
            if value not in read_last:
                continue  # nobody reads it: an engine does not make it
            elements = graph.values[value].elements
            over = [b for b in reads.values() if b.last == number and b.elements == elements]
            if in_step and over:
                buffers[value] = over[0]
                over[0].last = read_last[value]
            else:
                made_by = group[-1]
                buffers[value] = Buffer(
                    elements, made_by.path, made_by.operator.name, number, read_last[value]
                )
        steps.append(_step(graph, group, reads))
    unique = {id(buffer): buffer for buffer in buffers.values()}
    return Schedule(tuple(steps), tuple(unique.values()))


def _groups(graph: Graph, fused: bool) -> list[list[Operation]]:
    operations = [op for op in graph.operations if any(graph.values[i].data for i in op.inputs)]
    if not fused:
        return [[operation] for operation in operations]
    groups: list[list[Operation]] = []
    for (path, _), run in groupby(operations, key=lambda op: (op.path, op.call)):
        together = list(run)
        if path in graph.leaves and _keeps_size(graph, together):
            groups.append(together)
        else:
            groups.extend([operation] for operation in together)
    return groups


def _keeps_size(graph: Graph, operations: list[Operation]) -> bool:
    """Whether the call of a module is that of a norm or an activation function."""
    if not all(_in_step(op) or op.operator.name in _REDUCTIONS for op in operations):
        return False
    first = next(i for i in operations[0].inputs if graph.values[i].data)
    outputs = operations[-1].outputs
    return bool(outputs) and graph.values[outputs[0]].elements == graph.values[first].elements


def _in_step(operation: Operation) -> bool:
    operator = operation.operator
    return operator.view or operator.pointwise or operator.name in _IN_STEP


def _last_reads(graph: Graph, groups: list[list[Operation]]) -> dict[int, int]:
    """Number of the last group that reads each piece of memory, made by an earlier one."""
    last: dict[int, int] = {}
    for number, group in enumerate(groups):
        own = set(_made(graph, group))
        for operation in group:
            for index in operation.inputs:
                memory = graph.values[index].memory
                if memory not in own:
                    last[memory] = number
    last.update(dict.fromkeys((graph.values[i].memory for i in graph.outputs), len(groups)))
    return last


def _made(graph: Graph, group: list[Operation]) -> list[int]:
    """Values that stand in memory of their own."""
    return [
        index
        for operation in group
        for index in operation.outputs
        if graph.values[index].memory == index and index not in operation.inputs
    ]


def _step(graph: Graph, group: list[Operation], reads: dict[int, Buffer]) -> Step:
    first = group[0]
    name = first.operator.name if len(group) == 1 else graph.types[first.path]
    adds = 0
    if len(group) == 1 and name in ("add", "add_") and len(reads) == 2:
        elements = graph.values[first.outputs[0]].elements
        if all(graph.values[index].elements == elements for index in first.inputs):
            adds = elements
    return Step(first.path, name, adds)
