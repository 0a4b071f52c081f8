"""The layers of a profile as a tree of modules, in which a row is the sum of what is below it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from efftrain.profiling.layers import Layer
from efftrain.profiling.report import Profile

_LISTS = {"Sequential", "ModuleList", "ModuleDict"}  # say less than what they hold


@dataclass(frozen=True)
class Cost:
    """What some layers cost together.

    Attributes:
        params: Elements of their own parameters.
        trainable: Of these, those that train.
        macs: Multiply-accumulates of inference of one sample.
        flops: Floating point operations of the same.
        activations: Elements of the same.
        saved_bytes: That they keep for backward, of the batch.
        bytes_moved: Of inference of one sample.
        predicted_ms: Of the same; None where no machine was given.
        memory_bound_ms: Of these, those of layers that are bound by memory.
    """

    params: int = 0
    trainable: int = 0
    macs: int = 0
    flops: int = 0
    activations: int = 0
    saved_bytes: int = 0
    bytes_moved: int = 0
    predicted_ms: float | None = None
    memory_bound_ms: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Both together."""
        timed = [t for t in (self.predicted_ms, other.predicted_ms) if t is not None]
        return Cost(
            params=self.params + other.params,
            trainable=self.trainable + other.trainable,
            macs=self.macs + other.macs,
            flops=self.flops + other.flops,
            activations=self.activations + other.activations,
            saved_bytes=self.saved_bytes + other.saved_bytes,
            bytes_moved=self.bytes_moved + other.bytes_moved,
            predicted_ms=sum(timed) if timed else None,
            memory_bound_ms=self.memory_bound_ms + other.memory_bound_ms,
        )

    @property
    def intensity(self) -> float | None:
        """FLOP for each byte; None where nothing is moved."""
        return self.flops / self.bytes_moved if self.bytes_moved else None

    @property
    def memory_bound_pct(self) -> float | None:
        """Share of the time in layers that are bound by memory; None where no time is known."""
        return 100 * self.memory_bound_ms / self.predicted_ms if self.predicted_ms else None


@dataclass(frozen=True)
class Row:
    """A module, or several alike that follow one another.

    Attributes:
        path: Of the (first) module.
        name: What is to be read below its parent: "conv1", "encoder.layers", "0-11".
        type: Its class.
        repeats: How many modules it stands for.
        output_shape: Of the last layer in it; () where it has none.
        own: What it computes itself.
        total: That and everything below it, of all modules it stands for.
        children: In the order in which they first run.
    """

    path: str
    name: str
    type: str
    repeats: int
    output_shape: tuple[int, ...]
    own: Cost
    total: Cost
    children: tuple[Row, ...]

    @property
    def layers(self) -> int:
        """Modules without children, all repeats counted."""
        return sum(child.layers for child in self.children) or self.repeats

    @property
    def height(self) -> int:
        """Levels below it."""
        return 1 + max(child.height for child in self.children) if self.children else 0

    def visible(self, depth: int, level: int = 0) -> Iterator[tuple[int, Row]]:
        """It and what is at most `depth` levels below it, each with its level."""
        yield level, self
        if level < depth:
            for child in self.children:
                yield from child.visible(depth, level + 1)


def find_rows(profile: Profile, *, merge: bool = True) -> Row:
    """Arrange a profile's layers as a tree.

    A module that computes nothing itself and holds one row shares that row. What is in no layer
    (the model's input, parameters that a parent uses in the module's place) is the model's own.

    Args:
        profile: Of a model.
        merge: Whether blocks alike that follow one another become one row.

    Returns:
        The whole model; its totals are the profile's.
    """
    nodes = {"": _Node("")}
    for number, layer in enumerate(profile.layers):
        node = _node(nodes, layer.path)
        node.layer, node.number = layer, number
    saved = own_saved_bytes(profile)
    for path in saved:  # what only training runs, such as dropout, is no layer of inference
        _node(nodes, path)
    for path, node in nodes.items():
        node.type = profile.types.get(path, "")
        node.cost = _own_cost(node.layer, saved.get(path, 0))
    nodes[""].cost += Cost(
        params=profile.params.total - sum(layer.params for layer in profile.layers),
        trainable=profile.params.trainable - sum(layer.trainable for layer in profile.layers),
        activations=profile.activations.total - sum(n.activations for n in profile.layers),
    )
    return _row(nodes[""], nodes[""].type, merge)[0]


def own_saved_bytes(profile: Profile) -> dict[str, int]:
    """Bytes kept for backward by path, without those of a module's children."""
    saved: dict[str, int] = defaultdict(int)
    for tensor in profile.memory.saved.tensors:
        saved[tensor.path] += tensor.saved_bytes
    return dict(saved)


def fitting_depth(root: Row, rows: int) -> int:
    """The deepest level, at least 1, at which a tree has no more than so many rows."""
    fitting = [d for d in range(1, root.height + 1) if sum(1 for _ in root.visible(d)) <= rows]
    return max(fitting, default=1)


@dataclass
class _Node:
    path: str
    layer: Layer | None = None
    number: int = -1
    type: str = ""
    cost: Cost = field(default_factory=Cost)
    children: dict[str, _Node] = field(default_factory=dict)


def _node(nodes: dict[str, _Node], path: str) -> _Node:
    """The node of a path, made with its parents where it is new."""
    if path not in nodes:
        parent, _, name = path.rpartition(".")
        nodes[path] = _node(nodes, parent).children.setdefault(name, _Node(path))
    return nodes[path]


def _own_cost(layer: Layer | None, saved_bytes: int) -> Cost:
    if layer is None:
        return Cost(saved_bytes=saved_bytes)
    return Cost(
        params=layer.params,
        trainable=layer.trainable,
        macs=layer.macs,
        flops=layer.flops,
        activations=layer.activations,
        saved_bytes=saved_bytes,
        bytes_moved=layer.bytes_moved,
        predicted_ms=layer.predicted_ms,
        memory_bound_ms=(layer.predicted_ms or 0.0) if layer.bound == "memory" else 0.0,
    )


def _row(node: _Node, name: str, merge: bool) -> tuple[Row, int]:
    """A node's row, and the number of the last layer in it that starts to run."""
    pairs = [_row(child, below, merge) for below, child in node.children.items()]
    rows = [row for row, _ in pairs]
    children = tuple(_merged(rows) if merge else rows)
    shape = node.layer.output_shape if node.layer else ()
    ends = [(node.number, shape)] + [(number, row.output_shape) for row, number in pairs]
    last, shape = max(ends)
    if node.path and node.cost == Cost() and len(children) == 1:
        (child,) = children
        block = child.own == Cost() and child.repeats == 1 and node.type not in _LISTS
        kind = node.type if block else child.type
        return replace(child, name=f"{name}.{child.name}", type=kind), last
    total = sum((child.total for child in children), start=node.cost)
    return Row(node.path, name, node.type, 1, shape, node.cost, total, children), last


def _merged(rows: Iterable[Row]) -> list[Row]:
    """Rows in which blocks alike with successive numbers are one."""
    groups: list[list[Row]] = []
    for row in rows:
        if groups and _follows(groups[-1][-1], row):
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_together(group) for group in groups]


def _follows(before: Row, row: Row) -> bool:
    left, right = _numbered(before.name), _numbered(row.name)
    if left is None or right is None or right != (left[0], left[1] + 1, left[2]):
        return False
    # below the deepest trained block nothing is kept: frozen blocks are not those above them
    keeps = [each.total.saved_bytes > 0 for each in (before, row)]
    return keeps[0] == keeps[1] and _structure(before) == _structure(row)


def _numbered(name: str) -> tuple[str, int, str] | None:
    """What stands before and after the number in "layer_3" and "3.conv"."""
    match = re.fullmatch(r"([^.]*?)(\d+)(\..*)?", name)
    return (match[1], int(match[2]), match[3] or "") if match else None


def _structure(row: Row) -> tuple[object, ...]:
    """What two rows have in common that stand for the same block."""
    total = row.total
    figures = (total.params, total.trainable, total.macs, total.flops)
    inside = tuple((child.name, _structure(child)) for child in row.children)
    return (row.type, row.output_shape, figures, inside)


def _together(rows: list[Row]) -> Row:
    first, last = rows[0], rows[-1]
    if len(rows) == 1:
        return first
    columns = zip(*(row.children for row in rows), strict=True)
    name = first.name
    if first.name != last.name and (begin := _numbered(name)) and (end := _numbered(last.name)):
        name = f"{begin[0]}{begin[1]}-{end[1]}{begin[2]}"
    return Row(
        path=first.path,
        name=name,
        type=first.type,
        repeats=sum(row.repeats for row in rows),
        output_shape=last.output_shape,
        own=sum((row.own for row in rows), start=Cost()),
        total=sum((row.total for row in rows), start=Cost()),
        children=tuple(_together(list(column)) for column in columns),
    )
