"""How many pixels an element of the last feature map depends on, from the graph of a forward pass.

Along the width, the last axis of an image [N, C, H, W]. Each tensor of the pass carries the pixels
that its first position sees and the step from one position to the next; the interval arithmetic is
that of Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks"
(Distill, 2019). `nan_probe` checks the result by running the model.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from efftrain.graph.trace import Graph, trace
from efftrain.profiling.field_walk import FieldWalk, LayerField

Status = Literal["complete", "partial", "unavailable"]


@dataclass(frozen=True)
class Stage:
    """The layers that work at one resolution.

    Attributes:
        stride: Pixels between two of their positions.
        first: Path of the first of them.
        last: Path of the last of them.
        layers: How many convolutions and pools.
        shape: Channels, height and width of the largest of their results.
        size: Pixels that a position sees at the end of the stage.
    """

    stride: int
    first: str
    last: str
    layers: int
    shape: tuple[int, int, int]
    size: int

    def to_dict(self) -> dict[str, Any]:
        """The stage under its JSON keys."""
        return {**asdict(self), "shape": list(self.shape)}


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

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The network by resolution, in the order in which its strides first appear."""
        groups: dict[int, list[LayerField]] = {}
        for layer in self.layers:
            groups.setdefault(layer.stride, []).append(layer)
        return tuple(
            Stage(
                stride=stride,
                first=group[0].path,
                last=group[-1].path,
                layers=len(group),
                shape=max((layer.shape for layer in group), key=math.prod),
                size=max(layer.size for layer in group),  # that of the longest branch
            )
            for stride, group in groups.items()
        )

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
            found["stages"] = [stage.to_dict() for stage in self.stages]
            found["layers"] = [layer.to_dict() for layer in self.layers]
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
    walk = FieldWalk(graph)
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
